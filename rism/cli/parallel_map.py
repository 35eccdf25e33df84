"""Work on several items in threads, with results in order and a bound on how many are in work."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    weigh: Callable[[T], int],
    most: int,
) -> Generator[Callable[[], R], None, None]:
    """Yield, for each item in order, a function that returns `work(item)` or raises its error.

    While the caller uses one result, threads work on the next ones. Close the iterator when
    leaving early: it waits for work that has begun and drops the rest.

    Args:
        work: called in threads; with one worker when the yielded function is called.
        items: taken when there is room: at most 2 `workers` are in work or wait for the caller,
            not counting the one yielded last.
        workers: number of threads; one means none.
        weigh: the weight of an item; called in the caller's thread.
        most: the most that all items in work may weigh together; a single item may weigh more.
    """
    if workers < 2:
        for item in items:
            yield partial(work, item)
        return
    waiting: deque[tuple[Future[R], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rism")
    try:
        for item in items:
            weight = weigh(item)
            while waiting and (len(waiting) >= 2 * workers or held + weight > most):
                future, its = waiting.popleft()
                yield future.result
                held -= its
            waiting.append((pool.submit(work, item), weight))
            held += weight
        while waiting:
            yield waiting.popleft()[0].result
    finally:
        pool.shutdown(cancel_futures=True)
