"""Work in order, bounded, and ended cleanly."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from rism.cli.parallel_map import map_ordered
from rism.runtime.engines import cpu_threads
from rism.runtime.engines.cpu_threads import threads_each

LONG = 30  # seconds until a test that waits for a thread gives up


def nothing(_: int) -> int:
    return 0


def outcome(answer: Callable[[], int]) -> int | str:
    try:
        return answer()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_answers_and_errors_come_map_ordered(workers: int) -> None:
    def work(number: int) -> int:
        if number % 7 == 3:
            raise ValueError(f"not {number}")
        return number * number

    answers = map_ordered(work, range(40), workers=workers, weigh=nothing, most=0)
    assert [outcome(answer) for answer in answers] == [
        f"not {n}" if n % 7 == 3 else n * n for n in range(40)
    ]


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


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_leaving_early_waits_for_what_began_and_begins_nothing_else(workers: int) -> None:
    begun, ended = [], []

    def work(number: int) -> int:
        begun.append(number)
        ended.append(number)
        return number

    before = threading.active_count()
    with closing(
        map_ordered(work, range(10_000), workers=workers, weigh=nothing, most=0)
    ) as answers:
        for answer in answers:
            if answer() == 3:
                break
    assert threading.active_count() == before
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 4 + 2 * workers


def test_one_worker_is_the_callers_own_thread() -> None:
    answers = map_ordered(lambda _: threading.get_ident(), [0, 0], workers=1, weigh=nothing, most=0)
    assert {answer() for answer in answers} == {threading.get_ident()}


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "cpu_count", lambda: 8)
    assert [threads_each(None, workers) for workers in (1, 2, 3, 4, 8, 20)] == [8, 4, 2, 2, 1, 1]
    assert [threads_each(6, workers) for workers in (1, 2, 4)] == [6, 3, 1]
