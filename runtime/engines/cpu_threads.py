"""The CPUs that this process may use, and how several images at once share them."""

import math
import os
from functools import cache
from pathlib import Path

# Each worker holds a decoded image and what is drawn of it.
MOST_WORKERS = 4
# A bundle below this computes an image in less time than it takes to read and write one: two
# images at once on a thread each beat two threads that wait for each other. Above it, layers
# are large enough for all threads, and what a run needs of memory is not multiplied.
SMALL_BUNDLE_BYTES = 2**30


@cache
def cpu_count() -> int:
    """Return the CPUs this process may use, by affinity and by cgroup quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return max(1, count)


def threads_each(threads: int | None, workers: int) -> int:
    """Return the threads of each worker where `workers` share `threads`, None for all CPUs."""
    return max(1, (threads or cpu_count()) // max(1, workers))
