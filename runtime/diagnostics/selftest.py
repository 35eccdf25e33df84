"""The self-test: whether an engine computes what the model does.

A bundle may store inputs of each graph and the outputs of one engine ("test vectors"). Other
engines get the same inputs and are compared: some pairs of GPU and library have been wrong by far
more than rounding, without an error.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rism.runtime.arrays import Array, Uint8
from rism.runtime.bundle.engine_spec import RecordedTensor
from rism.runtime.bundle.graph_spec import GRAPH_OUTPUTS
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.reader import Bundle
from rism.runtime.bundle.update import store_file
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.engines.onnxruntime import ort_loads
from rism.runtime.engines.onnxruntime_session import import_onnxruntime
from rism.runtime.engines.providers import PROVIDERS, check_precision, find_provider
from rism.runtime.engines.selection import (
    EngineRequest,
    EngineSelection,
    start_first_available,
    variant_loads,
)
from rism.runtime.errors import BundleError, ProviderError
from rism.runtime.method.postprocess import localise_outputs
from rism.runtime.segmenter import Segmenter

FILE = "selftest.bin"
EXPRESSION = "the green square"
# Sides of the image in tokens where images may be small; engines are built for no smaller.
SIDE_TOKENS = 16
MAX_OUTPUT_BYTES = 64 * 2**20
_ALIGNMENT = 64
Loads: TypeAlias = Mapping[str, Callable[[], Engine]]


@dataclass(frozen=True)
class Limits:
    """The largest errors that a precision may have.

    Attributes:
        output: largest error over the reference's largest value.
        region: the same for what depends on which tokens are above tau: `scores`, separability.
        mask: share of tokens that may change sides.
    """

    output: float
    region: float
    mask: float


# From measured errors, see docs/engines.md. A wrong kernel is off by about 1.
LIMITS: Mapping[str, Limits] = {
    "float32": Limits(output=2e-3, region=2e-2, mask=0.01),
    "float16": Limits(output=3e-2, region=0.1, mask=0.03),
    "bfloat16": Limits(output=0.1, region=0.2, mask=0.06),
    "fp8": Limits(output=0.25, region=0.4, mask=0.1),
    "nvfp4a16": Limits(output=0.5, region=0.5, mask=0.1),
    "nvfp4": Limits(output=0.7, region=0.5, mask=0.1),
}


@dataclass(frozen=True)
class Comparison:
    """One output of one graph against the stored one; `mask` stands for the masks of both."""

    graph: str
    output: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


def check(bundle: Bundle, loads: Loads, *, precision: str) -> list[Comparison]:
    """Run engines on the stored inputs and compare what they return with the stored outputs.

    `loads` is what loads the engine of each of the manifest's graphs; one is loaded at a time, and
    graphs without vectors are left out. A precision that is no key of `LIMITS` is held to float32.

    Raises:
        BundleError: the bundle has no vectors, or an engine is not what the manifest says.
        ProviderError: an engine cannot run.
        InputError: the stored shapes are outside of those that a plan was built for.
    """
    test = bundle.manifest.self_test
    if test is None:
        raise BundleError(
            f"bundle '{bundle.path}' has no test vectors: rism doctor {bundle.path} --record"
        )
    limits, found = LIMITS.get(precision, LIMITS["float32"]), []
    for graph, stored in test.graphs.items():
        if graph not in loads:
            continue
        feeds = {name: _read(bundle, test.file, each) for name, each in stored.inputs.items()}
        wanted = {name: _read(bundle, test.file, each) for name, each in stored.outputs.items()}
        outputs = loads[graph]().run(feeds)
        for name, reference in wanted.items():
            own = limits.region if name in ("scores", "separability") else limits.output
            found.append(Comparison(graph, name, _error(outputs[name], reference), own))
        share = _mask_error(bundle.manifest, graph, feeds, outputs, wanted)
        if share is not None:
            found.append(Comparison(graph, "mask", share, limits.mask))
    return found


def check_variant(bundle: Bundle, name: str, *, device: int = 0) -> list[Comparison]:
    """Check an engine variant of a bundle, on this machine.

    Raises:
        ProviderError: it cannot run here; the message says why.
        InputError, BundleError: see `check`; or there is no variant of that name.
    """
    loads, precision = variant_loads(bundle, EngineRequest(device=device, engine=name))
    return check(bundle, loads, precision=precision)


def record(folder: Path, request: EngineRequest | None = None) -> str:
    """Make vectors and store them; see `vectors` and `store`.

    Returns:
        What made them, such as "onnxruntime-cpu 1.31.1".
    """
    bundle = Bundle.open(folder)
    entry, data = vectors(bundle, request)
    store(bundle.path, entry, data)
    return str(entry["made_by"])


def store(folder: Path, entry: Mapping[str, Any], data: bytes) -> None:
    """Put what `vectors` returned into a bundle in place of its own, as `update_bundle` does."""
    store_file(folder, FILE, data, lambda manifest: manifest.update(self_test=entry))


def vectors(bundle: Bundle, request: EngineRequest | None = None) -> tuple[dict[str, Any], bytes]:
    """Return the manifest's "self_test" and the bytes of its file; writes nothing.

    By default onnxruntime on the CPU makes them.
    One image, as small as the bundle's engines are built for, and one expression go through
    the whole bundle; what each graph was given and returned is kept, but for outputs of more
    than 64 MiB (the transition matrices of large models).

    Raises:
        ProviderError: the engines cannot run here, or do not return finite numbers.
    """
    request = request or EngineRequest(provider="onnxruntime-cpu")
    manifest, seen = bundle.manifest, dict[str, tuple[Arrays, Arrays]]()

    def start(selection: EngineSelection) -> tuple[EngineSelection, dict[str, Engine]]:
        return selection, selection.load()

    capture = manifest.default_capture
    selection, engines = start_first_available(bundle, capture, request, start)
    spies = {key: _Recorder(engine, seen, key) for key, engine in engines.items()}
    segmenter = Segmenter(selection.bundle, spies, capture=capture)
    segmenter.segment(_image(_size(manifest)), EXPRESSION)
    del segmenter, engines, spies
    first = manifest.geometry.first_size
    feeds = seen.pop(manifest.at_size("transformer", first))[0]
    for mode in manifest.captures:
        graph = manifest.at_size(f"transformer.{mode}", first)
        one = start_first_available(bundle, mode, request, lambda selection: selection)
        engine = one.loads[manifest.at_size("transformer", first)][1]()
        seen[graph] = feeds, engine.run(feeds)
    return _pack(manifest, seen, _made_by(selection))


def onnx_loads(bundle: Bundle, provider: str, request: EngineRequest) -> Loads:
    """Return what loads each graph that a provider of onnxruntime runs.

    Raises:
        ProviderError: it cannot compute in the bundle's precision.
    """
    found = find_provider(provider)
    for graph in bundle.manifest.graphs:
        check_precision(bundle.manifest.precision_of(graph), found, "self-test")
    graphs = {name: name for name in bundle.manifest.graphs if found.backend.runs(name)}
    loads, _ = ort_loads(
        bundle, graphs, found.backend, device=request.device, threads=request.threads
    )
    return {graph: load for graph, (_, load) in loads.items()}


class _Recorder:
    """An engine that keeps what it was given and what it returned, the first time."""

    def __init__(self, engine: Engine, seen: dict[str, tuple[Arrays, Arrays]], graph: str) -> None:
        self._engine, self._seen, self._graph = engine, seen, graph
        self.provider = engine.provider

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        outputs = self._engine.run(feeds)
        self._seen.setdefault(self._graph, (dict(feeds), dict(outputs)))
        return outputs


def _size(manifest: Manifest) -> tuple[int, int]:
    """Return the (width, height) in pixels of an image that engines are built for.

    That is a square of the model's area, and where small images stay small a small one.
    """
    geometry = manifest.geometry
    if geometry.sizes:
        return geometry.sizes[0]
    side = geometry.size_level
    if geometry.resize == "shrink":
        step = math.lcm(geometry.multiple_px, geometry.token_px)
        side = step * max(1, min(side, SIDE_TOKENS * geometry.token_px) // step)
    return side, side


def _image(size_wh: tuple[int, int]) -> Uint8:
    """Draw a green square on a gradient: (height, width, 3) uint8."""
    width, height = size_wh
    rows, columns = np.indices((height, width))
    channels = [columns * 255 // width, np.full_like(rows, 90), 255 - rows * 255 // height]
    image = np.stack(channels, axis=-1).astype(np.uint8)
    image[height // 4 : height * 5 // 8, width // 4 : width * 5 // 8] = (30, 200, 40)
    return image


def _pack(
    manifest: Manifest, seen: Mapping[str, tuple[Arrays, Arrays]], made_by: str
) -> tuple[dict[str, Any], bytes]:
    data, graphs = bytearray(), dict[str, Any]()

    def put(array: Array, dtype: str) -> dict[str, Any]:
        data.extend(bytes(-len(data) % _ALIGNMENT))
        stored = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))
        offset = len(data)
        data.extend(stored.tobytes())
        return {"dtype": dtype, "shape": list(stored.shape), "offset": offset}

    for graph, (feeds, outputs) in seen.items():
        spec = manifest.graphs[graph]
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ProviderError(
                    f"graph '{graph}' returned '{name}' with NaN or infinity on {made_by}, which "
                    "is no reference: record with another --provider"
                )
        graphs[graph] = {
            "inputs": {name: put(feeds[name], each.dtype) for name, each in spec.inputs.items()},
            "outputs": {
                name: put(outputs[name], each.dtype)
                for name, each in spec.outputs.items()
                if outputs[name].nbytes <= MAX_OUTPUT_BYTES
            },
        }
    entry = {"file": FILE, "made_by": made_by, "graphs": graphs}
    return json.loads(json.dumps(entry)), bytes(data)


def _made_by(selection: EngineSelection) -> str:
    """Name the engine of the transformer, and its library's version."""
    provider = next(name for key, (name, _) in selection.loads.items() if "transformer" in key)
    label = provider.partition(":")[0]
    for each in PROVIDERS.values():
        if each.label == label and each.every_graph:
            return f"{each.name} {import_onnxruntime().__version__}"
    return f"{label} ({selection.reason.rpartition(': ')[2]})"


def _read(bundle: Bundle, file: str, tensor: RecordedTensor) -> Array:
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    with bundle.file(file).open("rb") as handle:
        handle.seek(tensor.offset, os.SEEK_SET)
        raw = handle.read(tensor.nbytes)
    if len(raw) != tensor.nbytes:
        raise BundleError(
            f"bundle '{bundle.path}': '{file}' ends at a tensor of {tensor.nbytes} bytes: "
            f"rism doctor {bundle.path} --record"
        )
    return np.frombuffer(raw, dtype).reshape(tensor.shape)


def _error(found: Array, reference: Array) -> float:
    """Return the largest error over the reference's largest value; NaN for what is not finite."""
    if found.shape != reference.shape:
        return math.inf
    if found.size == 0:
        return 0.0
    wanted = reference.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(found.astype(np.float64) - wanted).max()
    return float(error / max(float(np.abs(wanted).max()), 1e-12))


def _mask_error(
    manifest: Manifest, graph: str, feeds: Arrays, outputs: Arrays, wanted: Arrays
) -> float | None:
    """Return the share of tokens that change sides; None where no mask can be made of both."""
    kind, _, capture = graph.partition("@")[0].partition(".")
    needed = GRAPH_OUTPUTS[graph.partition("@")[0]] if kind == "transformer" else ()
    if not needed or set(needed) - set(wanted):
        return None
    tau = float(feeds["tau"][0]) if "tau" in feeds else manifest.method.tau
    sides = []
    for arrays in (outputs, wanted):
        if any(
            array.shape != wanted[name].shape for name, array in arrays.items() if name in wanted
        ):
            return 1.0
        last = {name: array[-1].astype(np.float32) for name, array in arrays.items()}
        with np.errstate(all="ignore"):
            found = localise_outputs(capture, last, tau=tau, prototype=manifest.method.prototype)
        sides.append(found.scores > 0)
    return float(np.mean(sides[0] != sides[1]))
