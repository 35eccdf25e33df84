"""From what a caller asks for to engines that run: which graph is run by what, and why.

A selection is made before anything is loaded. What is asked for by name is tried and nothing
else; "auto" tries what a bundle and a machine have, best first, and keeps the reasons.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from rism.runtime.bundle.engine_spec import EngineVariant
from rism.runtime.bundle.graph_spec import SIZELESS
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.reader import Bundle
from rism.runtime.distribution import DISTRIBUTION
from rism.runtime.engines import cuda_device, nvidia_driver, tensorrt_library, variants
from rism.runtime.engines.base import Engine, LazyEngine, Load
from rism.runtime.engines.kernel_cache import RuntimeCache
from rism.runtime.engines.onnxruntime import ort_loads
from rism.runtime.engines.providers import (
    PROVIDERS,
    Provider,
    check_precision,
    find_provider,
    parse_provider,
)
from rism.runtime.engines.residency import within
from rism.runtime.engines.tensorrt import TensorRtEngine
from rism.runtime.engines.tensorrt_library import LIBRARIES, Library, check_driver
from rism.runtime.engines.variants import Machine, build_command, choose_variant, largest_batch
from rism.runtime.errors import InputError, ProviderError, one_line
from rism.runtime.names import COMPUTE_TYPES, ENGINE_PRECISIONS, ENGINES_ALONE

T = TypeVar("T")


@dataclass(frozen=True)
class EngineRequest:
    """What a caller asks for.

    Attributes:
        provider: see `providers.parse_provider`.
        device: number of the GPU.
        threads: CPU threads; None for as many as this process may use.
        precision: one of `ENGINE_PRECISIONS`; None for whatever there is.
        engine: name of an engine variant; None for the one that fits best.
        workers: threads of the caller that will run at once; see `ort_loads`.
        memory: a budget for the graphs, see `within`; None for no budget.
        max_batch: expressions of a run, where a budget allows that.
    """

    provider: str = "auto"
    device: int = 0
    threads: int | None = None
    precision: str | None = None
    engine: str | None = None
    workers: int = 1
    memory: str | int | None = None
    max_batch: int = 8


@dataclass(frozen=True)
class EngineSelection:
    """Which graph is run by what.

    Attributes:
        bundle: the bundle, its manifest with the batch sizes of plans that were built for one.
        loads: what each engine will run on and what loads it, by "text_encoder", "vae_encoder",
            "transformer" and "vision_encoder"; with sizes by "transformer@512x512".
        reason: why these were chosen.
        text_by: names what computes prompt embeddings, for caches of them.
        precision: what the transformer computes in.
        max_batch: expressions that a run can hold, or None where that is free.
    """

    bundle: Bundle
    loads: Mapping[str, Load]
    reason: str
    text_by: str
    precision: str
    max_batch: int | None

    def load(self, *, lazy_text: bool = False) -> dict[str, Engine]:
        """Load the engines, in parallel: parsing and packing weights use one thread for the most.

        Graphs of fixed sizes, and with `lazy_text` the encoders of text and vision, are loaded
        when they are first needed.
        """
        sized = bool(self.bundle.manifest.geometry.sizes)

        def prepare(key: str) -> Engine:
            provider, load = self.loads[key]
            if lazy_text if key in SIZELESS else sized:
                return LazyEngine(load, provider=provider)
            return load()

        with ThreadPoolExecutor(max_workers=4) as pool:
            return dict(zip(self.loads, pool.map(prepare, self.loads), strict=True))


def start_first_available(
    bundle: Bundle, capture: str, request: EngineRequest, start: Callable[[EngineSelection], T]
) -> T:
    """Start what was asked for, or with "auto" the first of what there is.

    `start` loads a selection; where it raises `ProviderError`, "auto" tries the next one.

    Raises:
        InputError: no such provider, precision or engine.
        ProviderError: nothing that was asked for can run here.
    """
    names = parse_provider(request.provider)
    if request.precision not in (None, *ENGINE_PRECISIONS):
        raise InputError(
            f"precision is '{one_line(request.precision, limit=40)}', expected one of "
            f"{', '.join(ENGINE_PRECISIONS)}"
        )
    if names != ("auto",):
        return start(select_engines(bundle, capture, names, request))
    candidates = list(_candidates(bundle.manifest, request))
    notes: list[str] = []
    for names, why in candidates:
        reason = "auto: " + "; ".join([*notes, why])
        try:
            return start(select_engines(bundle, capture, names, request, reason=reason))
        except ProviderError as error:
            if names == candidates[-1][0]:
                raise
            notes.append(f"{names[0]} did not start ({error})")
    command = build_command(bundle.path, "tensorrt-rtx", precision=request.precision)
    raise ProviderError(
        f"this bundle computes in {bundle.manifest.precision.compute} and has no engine in "
        f"{request.precision}: {command}"
    )


def _candidates(
    manifest: Manifest, request: EngineRequest
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what "auto" tries, best first, each with a reason to take it."""
    targets = {v.target: None for v in manifest.engines if request.engine in (None, v.name)}
    if request.engine is not None and not targets:
        targets = {"tensorrt-rtx": None}  # its error says which engines there are
    try:
        best = best_onnxruntime_provider()
    except ProviderError:
        if not targets:
            raise
        best = None  # engines may have all graphs
    for target in targets:
        if target in LIBRARIES:
            # What has no plan runs on the best onnxruntime; results name both.
            yield (target, *([] if best is None else [best[0]])), "an engine of the bundle fits"
    own = COMPUTE_TYPES.get(request.precision or "") in (None, manifest.precision.compute)
    if best is None or request.engine is not None or request.precision in ENGINES_ALONE or not own:
        return
    name, why = best
    for provider in _onnx_providers(every_graph=False):
        # After engines, whose layers were checked; before CUDA's kernels, which are one a node.
        reason = provider.backend.available()
        if reason is not None:
            yield (provider.name, name), reason
    yield (name,), why
    if name != "onnxruntime-cpu":
        yield ("onnxruntime-cpu",), "the CPU is left"


def best_onnxruntime_provider() -> tuple[str, str] | None:
    """Return the best provider of onnxruntime that runs every graph, and why.

    Raises:
        ProviderError: onnxruntime is not installed.
    """
    for provider in _onnx_providers(every_graph=True):
        reason = provider.backend.available()
        if reason is not None:
            return provider.name, reason
    return None


def _onnx_providers(*, every_graph: bool) -> list[Provider]:
    return [
        each
        for each in PROVIDERS.values()
        if each.auto and not each.built and each.every_graph is every_graph
    ]


def select_engines(
    bundle: Bundle,
    capture: str,
    names: Sequence[str],
    request: EngineRequest,
    *,
    reason: str = "asked for",
) -> EngineSelection:
    """Decide which graph is run by which of some providers, the first that has it.

    Raises:
        InputError: no engine of the name asked for.
        ProviderError: a provider is not there, or no engine fits.
    """
    manifest = bundle.manifest
    graphs = manifest.graphs_of(capture)
    loads: dict[str, Load] = {}
    text_by, precision = "", manifest.precision.compute
    batches: list[int | None] = []
    plans: dict[str, tuple[EngineVariant, Callable[[int], Engine]]] = {}
    for name in names:
        left = {key: graph for key, graph in graphs.items() if key not in loads}
        if not left:
            break
        provider = find_provider(name)
        if not provider.built:
            backend = provider.backend
            backend.check(request.device)
            for graph in left.values():
                check_precision(manifest.precision_of(graph), provider, reason)
            if any(key.startswith("transformer") for key in left):
                precision = manifest.precision.on(gpu=backend.gpu)
            if len(left) == len(graphs):
                _check_own(bundle, provider, request, reason)
            left = _part(left, provider, last=name == names[-1])
            batches.append(backend.max_batch)
            found, notes = ort_loads(
                bundle,
                left,
                backend,
                device=request.device,
                threads=request.threads,
                workers=request.workers,
                lean=request.memory is not None,
            )
            loads |= found
            reason = "; ".join([reason, *notes])
            text_by = text_by or provider.label
            continue
        transformer = [graph for key, graph in left.items() if key.startswith("transformer")]
        needed = list(left.values()) if name == names[-1] else transformer
        library, variant, rebuild = _variant(bundle, name, request, needed, list(left.values()))
        mine = {key: graph for key, graph in left.items() if graph in variant.graphs}
        reason = f"{reason}: engine '{variant.name}'"
        load = _tensorrt_load(bundle, variant, library, request.device, rebuild)
        loads |= {
            key: (f"{name}:{request.device}", partial(load, graph)) for key, graph in mine.items()
        }
        plans |= {key: (variant, partial(load, graph)) for key, graph in mine.items()}
        if any(graph in mine.values() for graph in transformer):
            precision = variant.compute
        if "text_encoder" in mine:
            digest = manifest.files[variant.graphs["text_encoder"].file].sha256
            text_by = f"{name} {variant.version} {digest}"
        batches.append(largest_batch(variant, list(mine.values())))
        manifest = _with_fixed(manifest, variant, list(mine.values()))
    ordered = {key: loads[key] for key in graphs}
    limit = min((size for size in batches if size is not None), default=None)
    if request.memory is not None:
        ordered, residency, said = within(
            bundle,
            capture,
            ordered,
            request.memory,
            plans=plans,
            device=request.device,
            threads=request.threads,
            max_batch=request.max_batch if limit is None else min(limit, request.max_batch),
        )
        limit, reason = residency.max_batch, f"{reason}; {said}"
    return EngineSelection(
        replace(bundle, manifest=manifest), ordered, reason, text_by, precision, limit
    )


def _part(graphs: Mapping[str, str], provider: Provider, *, last: bool) -> dict[str, str]:
    """Return the graphs that a provider runs; as the last provider it has to run them all."""
    runs = provider.backend.runs
    others = [graph for graph in graphs.values() if not runs(graph)]
    if last and others:
        raise ProviderError(
            f"provider {provider.name} does not run {', '.join(others)} (it can run elsewhere: "
            "add +onnxruntime-cuda, or +onnxruntime-cpu, to --provider)"
        )
    return {key: graph for key, graph in graphs.items() if runs(graph)}


def _variant(
    bundle: Bundle,
    target: str,
    request: EngineRequest,
    needed: Sequence[str],
    optional: Sequence[str],
) -> tuple[Library, EngineVariant, str]:
    """Return the library, the variant to run with it, and the command that rebuilds it."""
    engines = bundle.manifest.engines
    if not engines or not any(v.target == target for v in engines):
        others = ", ".join(f"'{v.name}' for {one_line(v.target)}" for v in engines) or "none"
        command = build_command(bundle.path, target, precision=request.precision)
        raise ProviderError(f"this bundle has no engine for {target} (it has {others}): {command}")
    if target not in LIBRARIES:
        raise ProviderError(
            f"this rism runs no engines for {one_line(target)}: install a newer {DISTRIBUTION}"
        )
    library = tensorrt_library.find_library(target)
    driver = nvidia_driver.find_driver()
    check_driver(library, driver)
    gpu = driver.gpu(request.device)
    variant = choose_variant(
        bundle.manifest,
        bundle.path,
        Machine(target, library.version, variants.this_platform(), gpu),
        needed=needed,
        optional=optional,
        precision=request.precision,
        engine=request.engine,
    )
    rebuild = build_command(bundle.path, target, gpu=gpu, precision=variant.precision)
    return library, variant, rebuild


def variant_loads(
    bundle: Bundle, request: EngineRequest
) -> tuple[dict[str, Callable[[], Engine]], str]:
    """Return what loads each plan of the variant `request.engine`, by graph, and its precision.

    Raises:
        InputError: no engine of that name.
        ProviderError: it cannot run here.
    """
    targets = [v.target for v in bundle.manifest.engines if v.name == request.engine]
    target = targets[0] if targets else "tensorrt-rtx"
    library, variant, rebuild = _variant(bundle, target, request, (), ())
    load = _tensorrt_load(bundle, variant, library, request.device, rebuild)
    return {graph: partial(load, graph) for graph in variant.graphs}, variant.compute


def _tensorrt_load(
    bundle: Bundle, variant: EngineVariant, library: Library, device: int, rebuild: str
) -> Callable[..., Engine]:
    """Return what loads a plan, given its graph and how many bytes of weights are on the GPU."""

    def load(graph: str, weights_bytes: int | None = None) -> Engine:
        cache = None
        if library.target == "tensorrt-rtx":
            driver = nvidia_driver.find_driver()
            gpu = driver.gpu(device)
            plan = bundle.manifest.files[variant.graphs[graph].file].sha256
            cuda = ".".join(map(str, driver.cuda))
            cache = RuntimeCache([plan, library.version, cuda, gpu.name, gpu.compute_capability])
        return TensorRtEngine(
            bundle,
            variant,
            graph,
            library=library,
            device=cuda_device.open_device(device),
            rebuild=rebuild,
            cache=cache,
            weights_bytes=weights_bytes,
        )

    return load


def _with_fixed(manifest: Manifest, variant: EngineVariant, graphs: Sequence[str]) -> Manifest:
    """Return the manifest with batches that a plan was built for in place of free ones."""
    changed = dict(manifest.graphs)
    for graph in graphs:
        inputs = dict(changed[graph].inputs)
        for logical, each in variant.graphs[graph].shapes.items():
            if each.min[:1] == each.max[:1]:
                shape = (*each.min[:1], *inputs[logical].shape[1:])
                inputs[logical] = replace(inputs[logical], shape=shape)
        changed[graph] = replace(changed[graph], inputs=inputs)
    return replace(manifest, graphs=changed)


def _check_own(bundle: Bundle, provider: Provider, request: EngineRequest, reason: str) -> None:
    """Refuse a GPU where there is none in use, and what an ONNX graph cannot give."""
    own = bundle.manifest.precision.compute
    if request.device and not provider.backend.gpu:
        raise ProviderError(
            f"device {request.device} is a GPU, and provider {provider.label} ({reason}) uses "
            "none: leave the device out, or choose a provider that runs here on a GPU (rism doctor)"
        )
    if request.engine is not None:
        raise InputError(
            f"engine '{one_line(request.engine, limit=60)}' was asked for, provider "
            f"{provider.label} runs the bundle's ONNX graphs: leave one of them out"
        )
    if request.precision is not None and COMPUTE_TYPES.get(request.precision) != own:
        command = build_command(bundle.path, "tensorrt-rtx", precision=request.precision)
        raise ProviderError(
            f"provider {provider.label} computes in {own}, as the bundle was exported, expected "
            f"{request.precision}: {command}, or export with --precision"
        )
