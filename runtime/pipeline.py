"""Work on several things at once, answered in order, with a bound on how many are under way.

Whoever takes the answers works too: while it writes one, threads work on the next ones.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    weigh: Callable[[T], int],
    most: int,
) -> Generator[Callable[[], R], None, None]:
    """Yield, for each item in order, what returns `work(item)` or raises what it raised.

    Close the iterator when leaving early: work that has begun is waited for, the rest never
    begins.

    Args:
        work: called in threads, or with one worker where the answer is asked for.
        items: taken as there is room for them: at most 2 `workers` are worked on or wait to be
            asked for, not counting the one whose answer was yielded last.
        workers: threads; one for none.
        weigh: what an item weighs; asked in the caller's thread.
        most: what items under way may weigh together. The first of them is always let in.
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
