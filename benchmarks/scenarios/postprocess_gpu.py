"""Post-processing where an engine leaves its outputs, on a GPU.

Random outputs of a graph lie on the device, as many as both published models return. Two ways,
each until its masks are on the host:

- `kernels`: `CudaPostprocess`; each launch by itself as well, beside the time that its bytes take
  at the rate of a large copy
- `host`: everything is brought to the host, for NumPy

The cache is overwritten before each run, as a transformer leaves it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.errors import DiffersError
from benchmarks.harness.measure import Timing
from benchmarks.harness.rows import Row, Task, check_known, timed
from rism.runtime.engines.cuda_device import Device, DeviceArray, open_device
from rism.runtime.expression.spatial_words import Cues
from rism.runtime.image.geometry import Plan
from rism.runtime.method.postprocess import PostprocessRequest, postprocess_numpy
from rism.runtime.method.postprocess_cuda import CudaPostprocess
from rism.runtime.options import ResolvedOptions

# More than any GPU's second-level cache.
FLUSH_BYTES = 512 * 2**20
TAU = 0.8
OPTIONS = ResolvedOptions(
    tau=TAU, prompt_weights=None, magnets="", sinks=False, prototype="equation",
    upsample="bilinear", spatial_prior=False, instances=False, confidence=None, always=True,
)  # fmt: skip

Float32 = npt.NDArray[np.float32]
Masks = list[np.ndarray]


@dataclass(frozen=True)
class OutputSizes:
    """Sizes of what a model's graph returns, and of an image."""

    name: str
    grid_hw: tuple[int, int]
    channels: int
    blocks: int
    size_wh: tuple[int, int]

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def wanted(self) -> PostprocessRequest:
        """What post-processing is asked for, of one expression."""
        resized = self.grid_hw[1] * 16, self.grid_hw[0] * 16
        plan = Plan(self.size_wh, resized, (0, 0, *resized), self.grid_hw)
        return PostprocessRequest("vectors", 1, plan, (Cues(),), OPTIONS)

    def floor_bytes(self, kernel: str) -> int:
        """What a launch has to read from memory or write to it."""
        features = 4 * self.tokens * self.channels
        return {
            "attention_maps": 4 * 2 * self.blocks * self.tokens,
            "sums_by_region": features,
            "scores_and_sums": features,
            "mask_pixels": self.size_wh[0] * self.size_wh[1],
        }.get(kernel, 0)


CASES = (
    OutputSizes("klein-9b at 1024", (64, 64), 4096, 32, (1024, 1024)),
    OutputSizes("step1x-edit at 512", (32, 32), 3072, 57, (640, 480)),
)


class _Clocked:
    """A device whose launches have a point in time before and after."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._launches: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def kernels(self, source: str, macros: dict[str, int]) -> Any:
        kernels, device = self._device.kernels(source, macros), self._device
        launches = self._launches

        class Launcher:
            def launch(
                self, name: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any]
            ) -> None:
                first = device.mark()
                kernels.launch(name, grid, threads, arguments)
                launches.append((name, first, device.mark()))

        return Launcher()

    def take(self) -> list[tuple[str, float]]:
        """Names and seconds of the launches since the last call, in order."""
        found = [(n, self._device.elapsed_ms(a, b) / 1e3) for n, a, b in self._launches]
        self._launches.clear()
        return found


def measure(task: Task) -> list[Row]:
    """Measure one model's sizes.

    Raises:
        DiffersError: masks differ in more than a thousandth of their pixels.
    """
    cases = {case.name: case for case in CASES}
    case = cases[check_known("case", [task["case"]], cases)[0]]
    found = compare_ways(case, device=open_device(0), runs=task.runs)
    pixels = case.size_wh[0] * case.size_wh[1]
    if max(found["pixels_that_differ"].values()) > 1e-3 * pixels:
        raise DiffersError(f"masks differ: {found['pixels_that_differ']} of {pixels} pixels")
    launches = {key: found[key] for key in ("launches", "copy_bytes_per_s")}
    return [
        timed(way, found[way], **(launches if way == "kernels" else {}))
        for way in ("host", "kernels")
    ]


def compare_ways(
    case: OutputSizes, *, device: Device, runs: int, flush_bytes: int = FLUSH_BYTES
) -> dict[str, Any]:
    """Time both ways and each launch, and compare their masks."""
    vectors, features = draw_outputs(case.grid_hw, case.channels, case.blocks)
    host = {"attention_vectors": vectors[None], "propagated_vectors": vectors[None]}
    wanted, host = case.wanted, host | {"features": features[None]}
    there = {name: device.empty(each.shape, "float32") for name, each in host.items()}
    for name, each in host.items():
        device.copy(each, into=there[name])
    clocked: Any = _Clocked(device)
    ours, watched = CudaPostprocess(device), CudaPostprocess(clocked)
    ways: dict[str, Callable[[], Masks]] = {
        "kernels": lambda: [each.mask_hw for each in ours.queue(there, wanted)()],
        "host": lambda: _host_code(there, wanted, device),
    }
    masks = {name: run() for name, run in ways.items()}  # compiles
    watched.queue(there, wanted)()
    clocked.take()
    with device.lock, device.current():
        flush = device.empty((flush_bytes,), "uint8")
        rate = _copy_rate(device, flush)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    launches = []
    for run in range(runs):
        for name, way in ways.items():
            if name != "kernels" and run % 10:
                continue  # slow, and of less interest
            _settle(device, flush)
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
        _settle(device, flush)
        watched.queue(there, wanted)()
        launches.append(clocked.take())
    return {
        **{name: Timing(tuple(each)) for name, each in seconds.items()},
        "launches": _by_launch(launches, case, rate),
        "copy_bytes_per_s": rate,
        "pixels_that_differ": {
            name: sum(int((a != b).sum()) for a, b in zip(masks["kernels"], each, strict=True))
            for name, each in masks.items()
        },
    }


def draw_outputs(grid_hw: tuple[int, int], features: int, blocks: int) -> tuple[Float32, Float32]:
    """Draw T_l a_l, (L, N), and features, (N, D).

    A blob of tokens has features of its own, in noise: a region, not a coin toss.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.indices(grid_hw).reshape(2, -1)
    high, wide = grid_hw
    far = ((rows - 0.4 * high) / high) ** 2 + ((columns - 0.55 * wide) / wide) ** 2
    inside = far < 0.2**2
    drawn = rng.standard_normal((len(rows), features), dtype=np.float32)
    drawn += 2 * inside[:, None] * rng.standard_normal(features, dtype=np.float32)
    propagated = rng.uniform(0, 0.1, (blocks, len(rows))).astype(np.float32) + inside
    return propagated.astype(np.float32), drawn


def _host_code(there: dict[str, DeviceArray], wanted: PostprocessRequest, device: Device) -> Masks:
    outputs = {name: device.download(each) for name, each in there.items()}
    return [each.mask_hw for each in postprocess_numpy(outputs, wanted)]


def _settle(device: Device, flush: DeviceArray) -> None:
    """Overwrite the cache, and wait for it."""
    with device.current():
        flush.fill(1)
        first = device.mark()
    device.elapsed_ms(first, first)


def _copy_rate(device: Device, memory: DeviceArray) -> float:
    """Bytes a second of a large copy, read and written."""
    half = memory.nbytes // 2
    seconds = []
    for _ in range(5):
        first = device.mark()
        device.copy(memory[:half], into=memory[half : 2 * half])
        seconds.append(device.elapsed_ms(first, device.mark()) / 1e3)
    return float(2 * half / statistics.median(seconds))


def _by_launch(
    launches: list[list[tuple[str, float]]], case: OutputSizes, rate: float
) -> list[dict[str, object]]:
    rows = []
    for each in zip(*launches, strict=True):
        name = each[0][0]
        timing = Timing(tuple(seconds for _, seconds in each))
        floor = case.floor_bytes(name) / rate
        rows.append({"kernel": name, **timing.to_json_dict(), "floor_s": floor})
    return rows
