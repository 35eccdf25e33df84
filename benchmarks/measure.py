"""Timing and memory, the same way for every benchmark."""

from __future__ import annotations

import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["Timing", "environment", "peak_bytes", "repeat"]


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest, seconds."""
        return min(self.seconds), max(self.seconds)

    def to_json_dict(self) -> dict[str, float]:
        """Median, fastest, slowest in seconds, and the number of runs."""
        low, high = self.spread
        return {"median_s": self.median, "min_s": low, "max_s": high, "runs": len(self.seconds)}


def repeat(run: Callable[[], object], *, runs: int, warm_up: int = 1) -> Timing:
    """Time `run` after `warm_up` untimed calls."""
    for _ in range(warm_up):
        run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak of what `run` allocates through Python and NumPy."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def environment() -> dict[str, object]:
    """What the figures were measured on."""
    packages = {}
    for name in ("rism", "numpy", "onnxruntime", "pillow", "tokenizers"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": packages,
    }
