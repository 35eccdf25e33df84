"""Engines within a budget of memory: they take turns, and what is too large runs in stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any

from rism.runtime.arrays import Array
from rism.runtime.bundle.engine_spec import EngineVariant
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine, LazyEngine, Load
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.cuda_device import Device
from rism.runtime.engines.malloc_trim import return_large_blocks, trim_malloc
from rism.runtime.engines.memory import (
    TURNS,
    PartMemory,
    Residency,
    choose_residency,
    expected_budget,
    gib,
    held_by,
    of_plan,
    parts_of,
)
from rism.runtime.engines.onnx_graph import OnnxGraph
from rism.runtime.engines.onnxruntime import OnnxRuntime, casts_stay
from rism.runtime.engines.onnxruntime_session import open_session
from rism.runtime.engines.providers import find_provider
from rism.runtime.engines.stages import GraphStage, StagedEngine, cut

_WORDS = {
    "resident": "all graphs stay loaded",
    "turns": "each graph is loaded when its turn comes",
    "stages": "each graph is loaded when its turn comes",
}


def within(
    bundle: Bundle,
    capture: str,
    loads: Mapping[str, Load],
    memory: str | int,
    *,
    plans: Mapping[str, tuple[EngineVariant, Callable[[int], Engine]]] | None = None,
    device: int = 0,
    threads: int | None = None,
    max_batch: int = 8,
) -> tuple[dict[str, Load], Residency, str]:
    """Bring engines within a budget of memory; nothing is loaded yet.

    Args:
        bundle: whose graphs they run.
        capture: the capture mode.
        loads: by key, of the whole graphs; on the CPU, or with a GPU on that.
        memory: see `parse_memory`; or "turns" for as much as the largest graph needs alone.
        plans: by key, of graphs that are plans: their variant, and what loads them with so many
            bytes of weights on the GPU.
        device: the GPU's number.
        threads: of stages on the CPU.
        max_batch: expressions of a run, where everything stays in memory.

    Returns:
        What loads the engines, what was chosen, and a line that says so.

    Raises:
        InputError: the budget cannot be read, or is too little or too much.
        BundleError: a graph cannot be read.
    """
    on_gpu = any(":" in provider for provider, _ in loads.values())
    budget, base = expected_budget(memory, gpu=device if on_gpu else None)
    mine = {key for key, (provider, _) in loads.items() if (":" in provider) == on_gpu}
    graphs: dict[str, OnnxGraph] = {}
    graph_names = bundle.manifest.graphs_of(capture)
    parts: list[PartMemory] = []
    for part, graph in parts_of(bundle, capture, on_gpu=on_gpu):
        if part.key in mine:
            if plans is not None and part.key in plans:
                part = of_plan(bundle, plans[part.key][0], graph_names[part.key], part)
            elif _backend(loads[part.key][0]) is None:
                part = replace(part, block=None)
            parts.append(part)
            graphs[part.key] = graph
    if memory == TURNS:
        budget = base + max(part.weights + part.activation for part in parts)
    chosen = choose_residency(parts, budget, base=base, max_batch=max_batch)
    said = f"memory {gib(budget)}: {_WORDS[chosen.kind]}, {gib(chosen.peak)} at most"
    if chosen.kind == "resident":
        return dict(loads), chosen, said
    room = MemoryBudget(budget - base)
    return_large_blocks()
    found = dict(loads)
    for part in parts:
        provider, load = loads[part.key]
        weights = part.weights
        if part.key in chosen.stages:
            most, ahead = chosen.stages[part.key]
            weights = most * (1 + ahead)
            if plans is not None and part.key in plans:
                load = partial(plans[part.key][1], weights)
                said += f"; {part.key} with {gib(weights)} of its weights on the GPU"
            else:
                stages = cut(graphs[part.key], most, held_by(bundle.manifest, on_gpu=on_gpu))
                load = partial(
                    _staged, bundle, capture, part.key, stages, provider, device, threads, ahead
                )
                said += f"; {part.key} in {len(stages)} stages of at most {gib(most)}"
        engine = partial(
            BudgetedEngine,
            load,
            provider=provider,
            budget=room,
            weights=weights,
            activation=part.activation,
        )
        found[part.key] = provider, engine
    return found, chosen, said


def _backend(provider: str) -> OnnxRuntime | None:
    """Return the backend that can run pieces of a graph, by what its engines say they run on."""
    label = provider.partition(":")[0]
    return find_provider(label).backend if label in ("cpu", "cuda") else None


def _staged(
    bundle: Bundle,
    capture: str,
    key: str,
    stages: Sequence[GraphStage],
    provider: str,
    device: int,
    threads: int | None,
    ahead: bool,
) -> Engine:
    backend = _backend(provider)
    assert backend is not None, "other engines are not cut"
    graph = bundle.manifest.graphs_of(capture)[key]
    spec = bundle.manifest.graphs[graph]
    file = bundle.file(spec.file if backend.gpu or spec.cpu is None else spec.cpu)

    def open_stage(model: bytes) -> Any:
        count = threads or cpu_count()
        # As the whole graph is opened, or the bits would not be the same.
        stay = casts_stay(graph, backend)
        return open_session(file, backend, device, count, part=model, lean=True, casts_stay=stay)

    return StagedEngine(spec, stages, open_stage, provider=provider, ahead=ahead)


class MemoryBudget:
    """Keeps the engines that are loaded within a number of bytes: the least recently used go."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[BudgetedEngine, int] = {}
        # One run at a time: two would need the memory of both.
        self.turn = RLock()

    def make_room(self, engine: "BudgetedEngine", weights: int, activation: int) -> None:
        """Drop others until an engine with so many bytes fits, and note that it is used now."""
        self._held.pop(engine, None)
        while self._held and sum(self._held.values()) + weights + activation > self.limit:
            oldest = next(iter(self._held))
            del self._held[oldest]
            oldest.drop()
        self._held[engine] = weights


class BudgetedEngine(LazyEngine):
    """An engine that is loaded when it runs, and leaves when another one needs its memory."""

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        provider: str,
        budget: MemoryBudget,
        weights: int,
        activation: int,
    ) -> None:
        super().__init__(load, provider=provider)
        self._budget, self._bytes = budget, (weights, activation)

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the graph, loading it before if need be."""
        with self._budget.turn:
            return super().run(feeds)

    def loaded(self) -> Engine:
        """Return the engine itself; others may have to go before it is loaded."""
        with self._budget.turn:
            self._budget.make_room(self, *self._bytes)
            return super().loaded()

    def drop(self) -> None:
        """Free the engine; its next run loads it again."""
        with self._lock:
            device: Device | None = getattr(self._engine, "device", None)
            self._engine = None
        if device is not None:
            device.trim()
        trim_malloc()
