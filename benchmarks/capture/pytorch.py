"""Time and memory of one module in PyTorch, eager and compiled."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt
import torch

from benchmarks.capture.models import RandomModel
from benchmarks.capture.variants import Variant
from benchmarks.harness.measure import Timing, repeat, repeat_on_gpu

__all__ = [
    "Check",
    "Figure",
    "attention_kernels",
    "forget",
    "out_of_memory",
    "outputs_of",
    "profile",
    "replay",
    "run_compiled",
    "run_eager",
]

Arrays = dict[str, npt.NDArray[Any]]
Check = Callable[[Arrays], None]
"""Raises where outputs are not what they should be; asked before anything is timed."""
Alone: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Entered while something is timed, so that other processes can wait."""
Module: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]

_WARM_UP = 3
_GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """What one variant cost.

    Attributes:
        timing: of one forward pass.
        memory_bytes: the peak with weights; None where it is not known.
        outputs: float32, by name.
        notes: what else there is to say.
    """

    timing: Timing
    memory_bytes: int | None
    outputs: Arrays
    notes: dict[str, object] = field(default_factory=dict)


def outputs_of(model: RandomModel, variant: Variant) -> Arrays:
    """Run it once, and bring what it gives out to the host: float32, by name."""
    return _outputs(model, variant, model.module(variant))


def run_eager(
    model: RandomModel,
    variant: Variant,
    *,
    runs: int,
    warm_up: int = _WARM_UP,
    check: Check | None = None,
    alone: Alone = nullcontext,
) -> Figure:
    """Run it as PyTorch runs Python, operator by operator."""
    times = _Times(runs, warm_up, check, alone)
    return _measure(model, variant, model.module(variant), times)


def run_compiled(
    model: RandomModel,
    variant: Variant,
    *,
    runs: int,
    warm_up: int = _WARM_UP,
    check: Check | None = None,
    alone: Alone = nullcontext,
    backend: str = "inductor",
    graph: bool = False,
) -> Figure:
    """Run it through torch.compile, the graph taken by torch.export as the exporter's is.

    A `backend` of "eager" takes the graph and no compiler. `graph` times it as a CUDA graph, too,
    for the note "cuda_graph".
    """
    times = _Times(runs, warm_up, check, alone)
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
        figure = _measure(model, variant, compiled, times, {"compile_s": round(seconds, 1)})
        if graph:
            with alone():
                figure.notes["cuda_graph"] = replay(compiled, model, runs=runs).to_json_dict()
        return figure
    finally:
        torch.compiler.reset()  # it would keep the weights


@dataclass(frozen=True)
class _Times:
    """How often, and what is asked before."""

    runs: int
    warm_up: int
    check: Check | None
    alone: Alone


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


def _outputs(model: RandomModel, variant: Variant, module: Module) -> Arrays:
    with torch.no_grad():
        found = [value.float().cpu().numpy() for value in module(**model.feeds)]
    return dict(zip(variant.outputs, found, strict=True))


def _measure(
    model: RandomModel,
    variant: Variant,
    module: Module,
    times: _Times,
    notes: dict[str, object] | None = None,
) -> Figure:
    def run() -> object:
        return module(**model.feeds)

    found = _outputs(model, variant, module)
    if times.check is not None:
        times.check(found)
    with torch.no_grad(), times.alone():
        if model.device == "cpu":
            timing, memory = repeat(run, runs=times.runs, warm_up=times.warm_up), None
        else:
            torch.cuda.reset_peak_memory_stats()
            timing = repeat_on_gpu(run, runs=times.runs, warm_up=times.warm_up)
            memory = torch.cuda.max_memory_allocated()
    return Figure(timing, memory, found, notes or {})


def attention_kernels(model: RandomModel) -> dict[str, str]:
    """Which of PyTorch's kernels serve the main attention and the probes' narrow values."""
    tokens, sized = model.case.tokens, model.case.sized

    def chosen(rows: int, width: int, dtype: torch.dtype) -> str:
        keys = torch.empty(
            1, sized.heads, sum(tokens.values()), sized.head_dim, dtype=dtype, device=model.device
        )
        number = torch._fused_sdp_choice(keys[:, :, :rows], keys, keys[..., :width].contiguous())
        return torch.nn.attention.SDPBackend(number).name.lower()

    probe = model.precision.probe
    return {
        "main": chosen(sum(tokens.values()), sized.head_dim, model.precision.compute),
        "probe, values of width 2": chosen(tokens["clean"], 2, probe),
        "probe, values of the head size": chosen(tokens["clean"], sized.head_dim, probe),
    }


def out_of_memory() -> str:
    """Say how far it came; asked before anything is freed."""
    most = torch.cuda.max_memory_allocated() / _GIB
    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / _GIB
    return f"out of memory at {most:.1f} GiB of {there:.1f} GiB"


def forget() -> None:
    """Give memory back that nothing refers to, between two measurements."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
