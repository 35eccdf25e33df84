"""Timing and memory, the same way for every benchmark."""

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.engines.malloc_trim import trim_malloc

_PACKAGES = (DISTRIBUTION, "numpy", "onnxruntime", "pillow", "tokenizers")
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


T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]
"""A transformer's outputs by name."""


@dataclass(frozen=True)
class Repeats:
    """How a way is run.

    Attributes:
        runs, warm_up: timed runs, and untimed ones before.
        check: raises where outputs are not what they should be; called before anything is timed.
        alone: entered while something is timed, so that other processes can wait.
    """

    runs: int
    warm_up: int = 3
    check: Callable[[Arrays], None] | None = None
    alone: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return statistics.median(self.seconds)

    def to_json_dict(self) -> dict[str, float]:
        """Median, fastest, slowest in seconds, and the number of runs."""
        low, high, runs = min(self.seconds), max(self.seconds), len(self.seconds)
        return {"median_s": self.median, "min_s": low, "max_s": high, "runs": runs}


def repeat(run: Callable[[], object], *, runs: int, warm_up: int = 1) -> Timing:
    """Time `run` after `warm_up` untimed calls."""
    return by_turns({"": run}, runs=runs, warm_up=warm_up, settle=False)[""]


def by_turns(
    ways: Mapping[str, Callable[[], object]], *, runs: int, warm_up: int = 1, settle: bool = True
) -> dict[str, Timing]:
    """Time several ways of one thing by turns, so that a busy minute slows all of them.

    Args:
        ways: by name.
        runs: of each.
        warm_up: untimed calls of each, before.
        settle: take up to three turns of several runs each, and begin each by one that is not
            timed: waiting threads of another library spin for a while, and take the cores from
            the next. Without it every run is a turn.
    """
    for run in ways.values():
        for _ in range(warm_up):
            run()
    turns = min(3, runs) if settle else runs
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, run in ways.items():
            if settle:
                run()
            for _ in range(runs * turn // turns, runs * (turn + 1) // turns):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


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


def forget() -> None:
    """Give memory back that nothing refers to, between two measurements."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def with_host_peak(run: Callable[[], T]) -> tuple[T, int | None]:
    """Run something, and watch the resident memory of this process.

    Returns:
        Its result, and the most that was held beyond what was held before, in bytes; None where
        the kernel does not tell (anything but Linux).
    """
    trim_malloc()  # what was freed and kept would hide what is taken
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        return run(), None
    result = run()
    return result, max(0, _resident("VmHWM") - before)


def peak_memory_bytes() -> int:
    """Return the most memory that this process ever held, mapped files included (Linux)."""
    return _resident("VmHWM")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell {field}")


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of the packages that every benchmark uses, and of others."""
    found = {}
    for name in (*_PACKAGES, *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment(*, packages: Sequence[str] = (), gpu: bool = False) -> dict[str, object]:
    """What the figures were measured on."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    found: dict[str, object] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": cpus,
        "packages": versions(packages),
    }
    return found | {"gpu": _gpu()} if gpu else found


def _processor() -> str:
    """Name of the CPU, where the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
