"""Timing and memory, the same way for every benchmark."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["Timing", "environment", "peak_bytes", "repeat", "repeat_on_gpu"]

_PACKAGES = ("rism", "numpy", "onnxruntime", "pillow", "tokenizers")
_GPU_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


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


def repeat_on_gpu(run: Callable[[], object], *, runs: int, warm_up: int = 1) -> Timing:
    """Time `run` by events on PyTorch's current CUDA stream, one run at a time."""
    import torch

    for _ in range(warm_up):
        run()
    seconds = []
    for _ in range(runs):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return Timing(tuple(seconds))


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak of what `run` allocates through Python and NumPy."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def environment(*, packages: Sequence[str] = (), gpu: bool = False) -> dict[str, object]:
    """What the figures were measured on.

    Args:
        packages: to name besides those that every benchmark uses.
        gpu: say what the CUDA device is, and how fast it runs at this moment.
    """
    versions = {}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    found: dict[str, object] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": versions,
    }
    return found | {"gpu": _gpu()} if gpu else found


def _gpu() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    found: dict[str, object] = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return found | {"nvidia-smi": "did not answer"}
    # One line for each device; PyTorch's first is the driver's first unless told otherwise.
    values = answer.stdout.splitlines()[0].split(", ")
    return found | {"nvidia-smi": dict(zip(_GPU_FIELDS, values, strict=True))}
