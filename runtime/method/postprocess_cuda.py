"""The method and the mask on the GPU that holds a graph's outputs, by a few kernels.

`kernels/postprocess.cu` has the arithmetic, which is that of equations.py and upsampling.upsample,
and the lower bound of each kernel's time; docs/performance.md has measurements. Everything is
queued on the device's stream for all expressions of a run at once. The host waits once, for one
transfer: three maps on the token grid, a few numbers, and the masks if they are the published
ones. Guided masks and masks of one instance are made on the host, while the GPU is free for
other runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from rism.runtime.arrays import Float32
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.engines.base import Engine
from rism.runtime.engines.cuda_device import Device, DeviceArray, Kernels
from rism.runtime.engines.device_engine import DeviceEngine
from rism.runtime.errors import ProviderError, one_line
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import (
    ATTENTION_CONSTANT,
    ATTENTION_NOT_FINITE,
    FEATURES_NOT_FINITE,
    Localisation,
)
from rism.runtime.method.postprocess import (
    ExpressionOutput,
    PostprocessRequest,
    evidence,
    expect_outputs,
    localise_outputs,
)

# Constants that the kernels are compiled with.
THREADS = 256
MAP_THREADS = 1024  # of `attention_maps`
PIXEL_ROWS = 8
# Least tokens for a block of threads: with fewer, writing its sums costs more than reading.
_LEAST_ROWS = 8
_CLASS_MEANS_CHANNELS = 32
_MAPS = 3

# `Answer` and `Reason` of the kernels.
_NUMBERS = np.dtype(
    [
        ("reason", "<i4"),
        ("pixels", "<i4"),
        ("separability", "<f4"),
        ("unused", "<i4"),
        ("tokens", "<i4", (2, 2)),
        ("not_zero", "<i4", (2, 2)),
    ]
)
_REASONS = (None, ATTENTION_NOT_FINITE, ATTENTION_CONSTANT, FEATURES_NOT_FINITE)


def kernel_source() -> str:
    """Return the kernels, CUDA C++."""
    return (files("rism.runtime") / "method/kernels/postprocess.cu").read_text(encoding="utf-8")


def kernel_macros(channels: int) -> dict[str, int]:
    """Return the macros that the kernels are compiled with for D channels."""
    held = max(1, -(-channels // THREADS))
    fixed = {"THREADS": THREADS, "MAP_THREADS": MAP_THREADS, "PIXEL_ROWS": PIXEL_ROWS}
    return {**fixed, "HELD": held}


@dataclass(frozen=True)
class _Results:
    """The parts of one block of device memory that is copied to the host at once.

    `masks` has no rows where the host makes the masks.
    """

    numbers: Any
    maps: Any
    masks: Any

    @classmethod
    def of(cls, memory: Any, request: PostprocessRequest) -> "_Results":
        """Divide a block of bytes, on the device or on the host."""
        count, (height, width) = request.count, cls._mask_hw(request)
        maps = count * _NUMBERS.itemsize
        masks = maps + count * _MAPS * request.plan.tokens * 4
        return cls(
            memory[:maps].view(np.int32).reshape(count, -1),
            memory[maps:masks].view(np.float32).reshape(count, _MAPS, -1),
            memory[masks : masks + count * height * width].reshape(count, height, width),
        )

    @classmethod
    def nbytes(cls, request: PostprocessRequest) -> int:
        height, width = cls._mask_hw(request)
        each = _NUMBERS.itemsize + _MAPS * request.plan.tokens * 4 + height * width
        return request.count * each

    @staticmethod
    def _mask_hw(request: PostprocessRequest) -> tuple[int, int]:
        width, height = request.plan.size_wh
        return height if request.published else 0, width


def prepare(engines: Mapping[str, Engine], manifest: Manifest, capture: str) -> None:
    """Compile the kernels for transformers on a GPU, so that a failure shows at the start.

    CuPy caches compiled kernels, on disk too. Engines that load lazily are skipped.

    Raises:
        ProviderError: the kernels cannot be compiled here.
    """
    for key, graph in manifest.graphs_of(capture).items():
        engine = engines[key]
        if graph.startswith("transformer.") and isinstance(engine, DeviceEngine):
            CudaPostprocess(engine.device).prepare(manifest.graphs[graph])


class CudaPostprocess:
    """The kernels on one device, compiled for each number of channels on first use."""

    def __init__(self, device: Device) -> None:
        """Remember the device; nothing is compiled yet."""
        self._device = device
        self._compiled: dict[int, Kernels] = {}

    def prepare(self, graph: GraphSpec) -> None:
        """Compile for a transformer graph, if its number of channels is fixed.

        Raises:
            ProviderError: the kernels cannot be compiled here.
        """
        features = graph.outputs.get("features")
        channels = 0 if features is None else features.shape[-1]
        if isinstance(channels, int):
            self._kernels(channels)

    def queue(
        self, outputs: dict[str, DeviceArray], request: PostprocessRequest
    ) -> Callable[[], list[ExpressionOutput]]:
        """Queue the kernels and the copy of their results to the host, without waiting.

        The outputs are by logical name, ready in the order of the device's stream.

        Returns:
            A function that waits for the results and finishes on the host. Call it without
            `device.lock`, so that other threads can queue work meanwhile.

        Raises:
            BundleError: an output is not of the shape that the manifest says.
            ProviderError: the kernels cannot be compiled here, or there is too little memory.
        """
        expect_outputs(request.capture, outputs, batch=request.batch, tokens=request.plan.tokens)
        try:
            return self._queue(outputs, request)
        except MemoryError as error:  # CuPy's OutOfMemoryError is one
            raise ProviderError(
                f"post-processing found too little memory on GPU {self._device.number} "
                f"({one_line(error, limit=160)}): use fewer expressions at a time or a smaller "
                "image"
            ) from None

    def _queue(
        self, outputs: dict[str, DeviceArray], request: PostprocessRequest
    ) -> Callable[[], list[ExpressionOutput]]:
        device = self._device
        with device.lock, device.current():
            outputs = {k: each.astype(np.float32, copy=False) for k, each in outputs.items()}
            marks = [device.mark()]
            memory = device.empty((_Results.nbytes(request),), "uint8")
            results = _Results.of(memory, request)
            if request.capture == "scores":
                self._copy_maps(outputs, results)
                kernels, means, channels = self._kernels(0), memory, 0
            else:
                channels = outputs["features"].shape[2]
                kernels = self._kernels(channels)
                means = self._queue_method(kernels, outputs, request, results)
            marks.append(device.mark())
            if request.published:
                self._queue_masks(kernels, means, channels, request, results)
            elif channels:
                arguments = (means, results.numbers, np.int32(channels))
                kernels.launch("separabilities", (request.count, 1, 1), THREADS, arguments)
            fetched = device.fetch(memory)
            tokens = outputs.get("token_attention")
            attention = None if tokens is None else device.fetch(tokens[: request.count])
            marks.append(device.mark())

        def finish() -> list[ExpressionOutput]:
            host = _Results.of(fetched(), request)
            of_tokens = None if attention is None else attention()
            times = [device.elapsed_ms(*ends) / request.count for ends in pairwise(marks)]
            return [_output(host, row, request, of_tokens, times) for row in range(request.count)]

        return finish

    def _kernels(self, channels: int) -> Kernels:
        macros = kernel_macros(channels)
        if macros["HELD"] not in self._compiled:
            self._compiled[macros["HELD"]] = self._device.kernels(kernel_source(), macros)
        return self._compiled[macros["HELD"]]

    def _queue_method(
        self,
        kernels: Kernels,
        outputs: dict[str, DeviceArray],
        request: PostprocessRequest,
        results: _Results,
    ) -> DeviceArray:
        """Equations 3 to 6; returns the class means (B, 2, D) of `scores > 0`."""
        count, features = request.count, outputs["features"]
        vectors = outputs["attention_vectors"]
        blocks, tokens, channels = vectors.shape[1], vectors.shape[2], features.shape[2]
        rows, groups = self._shares(count, tokens)
        matrices = request.capture == "matrices"
        inverse, sums, means, *more = self._scratch(
            count * tokens,
            count * groups * 2 * channels,
            count * 2 * channels,
            *([count * blocks * tokens] if matrices else []),
        )
        n, d = np.int32(tokens), np.int32(channels)
        if matrices:
            (propagated,) = more
            kernels.launch(
                "propagate",
                (tokens, blocks, count),
                THREADS,
                (outputs["transition_matrices"], vectors, propagated, n),
            )
        else:
            propagated = outputs["propagated_vectors"]
        maps, numbers = results.maps, results.numbers
        kernels.launch(
            "attention_maps",
            (2, count, 1),
            MAP_THREADS,
            (vectors, propagated, maps, numbers, np.int32(blocks), n),
        )
        published = self._apply_priors(maps, request)
        sizes, tau = (n, d, np.int32(rows)), np.float32(request.options.tau)
        cosine = np.int32(request.options.prototype == "cosine")
        slices = (-(-channels // _CLASS_MEANS_CHANNELS), count, 1)
        for at, (name, arrays, option) in enumerate(
            (
                ("sums_by_region", (features, maps, inverse, sums, numbers), tau),
                ("scores_and_sums", (features, means, maps, inverse, sums, numbers), cosine),
            )
        ):
            kernels.launch(name, (groups, count, 1), THREADS, (*arrays, *sizes, option))
            kernels.launch(
                "class_means",
                slices,
                THREADS,
                (sums, means, numbers, np.int32(groups), d, np.int32(at)),
            )
        for row, refined in published.items():
            maps[row, 1] = refined
        return means

    def _apply_priors(
        self, maps: DeviceArray, request: PostprocessRequest
    ) -> dict[int, DeviceArray]:
        """Weight the refined maps by their spatial priors; returns the published ones by row."""
        published = {}
        for row in range(request.count):
            prior = request.prior(row)
            if prior is not None:
                published[row] = maps[row, 1].copy()
                there = self._device.empty(prior.shape, "float32")
                self._device.copy(prior, into=there)
                weighted = maps[row, 1] * there
                # The map is in 0 to 1, and all zero where degenerate: min-max cannot fail.
                low, high = weighted.min(), weighted.max()
                maps[row, 1] = (weighted - low) / (high - low).clip(1e-30)
        return published

    def _shares(self, count: int, tokens: int) -> tuple[int, int]:
        """Tokens of each block of threads, and how many blocks: two for each multiprocessor."""
        groups = max(1, 2 * self._device.multiprocessors // count)
        rows = max(_LEAST_ROWS, -(-tokens // groups))
        rows = -(-rows // _LEAST_ROWS) * _LEAST_ROWS
        return rows, -(-tokens // rows)

    def _scratch(self, *floats: int) -> list[DeviceArray]:
        memory = self._device.scratch(4 * sum(floats))
        parts, begin = [], 0
        for each in floats:
            parts.append(memory[begin : begin + 4 * each].view(np.float32))
            begin += 4 * each
        return parts

    def _copy_maps(self, outputs: dict[str, DeviceArray], results: _Results) -> None:
        """Copy the maps of a graph that contains the method to where the kernels write theirs."""
        results.numbers.fill(0)
        count = len(results.numbers)
        results.numbers.view(np.float32)[:, 2] = outputs["separability"][:count]
        for at, name in enumerate(("coarse_attention", "refined_attention", "scores")):
            results.maps[:, at] = outputs[name][:count]

    def _queue_masks(
        self,
        kernels: Kernels,
        means: DeviceArray,
        channels: int,
        request: PostprocessRequest,
        results: _Results,
    ) -> None:
        """Queue step 7 of docs/bundle.md, and the separability where there are class means."""
        tokens, (width, height) = request.plan.tokens, request.plan.size_wh
        scores = results.maps.reshape(-1)[2 * tokens :]
        sizes = (np.int32(_MAPS * tokens), np.int32(channels), np.int32(width), np.int32(height))
        kernels.launch(
            "mask_pixels",
            (-(-width // THREADS), -(-height // PIXEL_ROWS), request.count),
            THREADS,
            (scores, means, results.numbers, results.masks, *sizes, *_axes(request.plan)),
        )


def _axes(plan: Plan) -> list[Any]:
    """Return the fields of the kernels' `Axis`, across and down; see `upsampling.upsample`."""
    arguments: list[Any] = []
    for axis in (0, 1):
        start, stop = plan.crop_xyxy[axis], plan.crop_xyxy[axis + 2]
        cells = plan.grid_hw[1 - axis]
        scale = plan.resized_wh[axis] / plan.size_wh[axis]
        arguments += [np.float64(scale), np.float64(start), np.float64(cells / (stop - start))]
        arguments.append(np.int32(cells))
    return arguments


def _output(
    host: _Results,
    row: int,
    request: PostprocessRequest,
    attention: Float32 | None,
    times_ms: list[float],
) -> ExpressionOutput:
    """Copy one expression's part out of page-locked memory, and make its mask if it has none."""
    numbers = host.numbers[row].view(_NUMBERS)[0]
    coarse, refined, scores = host.maps[row].copy()
    if request.capture == "scores":
        outputs = {"coarse_attention": coarse, "refined_attention": refined, "scores": scores}
        outputs["separability"] = numbers["separability"]
        options = request.options
        found = localise_outputs("scores", outputs, tau=options.tau, prototype=options.prototype)
    else:
        reason = _REASONS[numbers["reason"]]
        if reason is not None:
            scores = np.zeros_like(scores)
        found = Localisation(scores, coarse, refined, float(numbers["separability"]), reason)
    seen, finish_ms = evidence(found), 0.0
    if request.published:
        empty = found.reason is not None or not numbers["pixels"]
        mask_hw = host.masks[row].view(np.bool_).copy()
        if empty:
            mask_hw[...] = False
    else:
        start = perf_counter()
        found = request.choose_instance(found, row)
        mask_hw = request.mask(found.scores)
        empty = not mask_hw.any()
        finish_ms = (perf_counter() - start) * 1e3
    return ExpressionOutput(
        found,
        mask_hw,
        empty=empty,
        evidence=seen,
        token_attention=None if attention is None else attention[row].copy(),
        method_ms=times_ms[0],
        mask_ms=times_ms[1] + finish_ms,
    )
