"""Work in order, bounded, and ended cleanly."""

import threading
from collections.abc import Iterator

import pytest

from rism.cli.parallel_map import map_ordered
from rism.runtime.engines import cpu_threads
from rism.runtime.engines.cpu_threads import threads_each

LONG = 30  # seconds until a test that waits for a thread gives up


def nothing(_: int) -> int:
    return 0


def test_workers_work_at_once_and_the_first_may_be_last() -> None:
    second_is_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_is_done.wait(LONG)
        if number == 1:
            second_is_done.set()
        return number

    answers = map_ordered(work, range(5), workers=2, weigh=nothing, most=0)
    assert [answer() for answer in answers] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("workers", "weights", "most", "expected"),
    [
        (2, [0] * 30, 0, 4),
        (3, [0] * 30, 0, 6),
        (4, [5] * 30, 10, 2),
        (4, [100] * 10, 10, 1),  # too heavy, each: alone
        (4, [1, 1, 100, 1, 1, 1, 1, 1], 10, 5),
    ],
)
def test_no_more_are_under_way_than_agreed(
    workers: int, weights: list[int], most: int, expected: int
) -> None:
    alive: set[int] = set()
    largest = 0

    def items() -> Iterator[int]:
        nonlocal largest
        for number in range(len(weights)):
            yield number
            # Asked for the next one: this one has been let in.
            alive.add(number)
            largest = max(largest, len(alive))
            heavy = sum(weights[each] for each in alive)
            assert heavy <= max(most, max(weights))

    answers = map_ordered(
        lambda number: number, items(), workers=workers, weigh=weights.__getitem__, most=most
    )
    for number, answer in enumerate(answers):
        assert answer() == number
        alive.discard(number)
    assert largest == expected


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "cpu_count", lambda: 8)
    assert [threads_each(None, workers) for workers in (1, 2, 3, 4, 8, 20)] == [8, 4, 2, 2, 1, 1]
    assert [threads_each(6, workers) for workers in (1, 2, 4)] == [6, 3, 1]
