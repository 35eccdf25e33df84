"""Time and memory of one module in PyTorch, eager and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from benchmarks.capture.models import RandomModel
from benchmarks.capture.variants import Variant
from benchmarks.harness.measure import Arrays, Repeats, Timing, repeat, repeat_on_gpu

Module: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]

_GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """What one variant cost."""

    timing: Timing
    memory_bytes: int | None
    outputs: Arrays
    notes: dict[str, object] = field(default_factory=dict)


def outputs_of(model: RandomModel, variant: Variant, module: Module | None = None) -> Arrays:
    """Run it once, and bring what it gives out to the host: float32, by name."""
    module = model.module(variant) if module is None else module
    with torch.no_grad():
        found = [value.float().cpu().numpy() for value in module(**model.feeds)]
    return dict(zip(variant.outputs, found, strict=True))


def run_eager(model: RandomModel, variant: Variant, runs: Repeats) -> Figure:
    """Run it as PyTorch runs Python, operator by operator."""
    return _measure(model, variant, model.module(variant), runs)


def run_compiled(
    model: RandomModel,
    variant: Variant,
    runs: Repeats,
    *,
    backend: str = "inductor",
    graph: bool = False,
) -> Figure:
    """Run it through torch.compile, on the graph that torch.export takes as the exporter does."""
    module = model.module(variant)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            program = torch.export.export(module, (), kwargs=model.feeds, strict=False)
            compiled = torch.compile(
                program.module(), fullgraph=True, dynamic=False, backend=backend
            )
            compiled(**model.feeds)
        seconds = time.perf_counter() - start
        figure = _measure(model, variant, compiled, runs, {"compile_s": round(seconds, 1)})
        if graph:
            with runs.alone():
                times = replay(compiled, model, runs=runs.runs).to_json_dict()
            figure.notes["cuda_graph"] = times
        return figure
    finally:
        torch.compiler.reset()  # it would keep the weights


def replay(module: Module, model: RandomModel, *, runs: int) -> Timing:
    """Time it as a CUDA graph: without the host, which a loop of small kernels waits for."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(2):  # what a first run sets up cannot be captured
                module(**model.feeds)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(**model.feeds)
    return repeat_on_gpu(graph.replay, runs=runs, warm_up=2)


def profile(module: Module, model: RandomModel, *, rows: int = 12) -> dict[str, float]:
    """Where one run goes: seconds on the device by kernel or operator, the longest first."""
    kinds = torch.profiler.ProfilerActivity
    cuda = model.device == "cuda"
    with (
        torch.no_grad(),
        torch.profiler.profile(activities=[kinds.CUDA if cuda else kinds.CPU]) as told,
    ):
        module(**model.feeds)
        if cuda:
            torch.cuda.synchronize()
    field_name = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = {each.key[:120]: getattr(each, field_name) / 1e6 for each in told.key_averages()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:rows])


def _measure(
    model: RandomModel,
    variant: Variant,
    module: Module,
    runs: Repeats,
    notes: dict[str, object] | None = None,
) -> Figure:
    def run() -> object:
        return module(**model.feeds)

    found = outputs_of(model, variant, module)
    if runs.check is not None:
        runs.check(found)
    with torch.no_grad(), runs.alone():
        if model.device == "cpu":
            timing, memory = repeat(run, runs=runs.runs, warm_up=runs.warm_up), None
        else:
            torch.cuda.reset_peak_memory_stats()
            timing = repeat_on_gpu(run, runs=runs.runs, warm_up=runs.warm_up)
            memory = torch.cuda.max_memory_allocated()
    return Figure(timing, memory, found, notes or {})


def out_of_memory() -> str:
    """Say how far it came; asked before anything is freed."""
    most = torch.cuda.max_memory_allocated() / _GIB
    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / _GIB
    return f"out of memory at {most:.1f} GiB of {there:.1f} GiB"
