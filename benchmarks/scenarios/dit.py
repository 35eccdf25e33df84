"""The diffusion transformer with random weights: every engine with every way of capturing.

A row is called "engine: variant". Outputs, and the masks that follow from them, are held against
the paper's literal capture, in the same process, before anything is timed.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.baselines.plain_onnx import write_plain_graph
from benchmarks.capture.models import CaptureCase, RandomModel
from benchmarks.capture.onnx import run_graph, write_graph
from benchmarks.capture.pytorch import Figure, out_of_memory, outputs_of, run_compiled, run_eager
from benchmarks.capture.variants import VARIANTS, Variant
from benchmarks.harness.checks import same_outputs
from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.measure import Repeats, forget, with_host_peak
from benchmarks.harness.rows import Row, Task, absent, check_known, failed, pending, timed
from rism.export.precision import PRECISIONS
from rism.runtime.engines.providers import check_provider
from rism.runtime.errors import ProviderError, RismError, one_line

ENGINES = ("torch", "compile", "onnxruntime", "plain onnxruntime")


def measure(task: Task) -> Iterator[Row]:
    """Measure every case with every engine and variant that is asked for.

    All rows are announced first: whoever ends this process knows what was not reached.
    """
    engines = check_known("engine", task["engines"], ENGINES)
    variants = check_known("variant", task["variants"], VARIANTS)
    check_known("variant", [task["reference"]], VARIANTS)
    check_known("precision", [task["precision"]], PRECISIONS)
    [device] = check_known("device", [task["device"]], ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(
            f"PyTorch {torch.__version__} finds no CUDA device, expected an NVIDIA GPU and a CUDA "
            "build of PyTorch: use benchmarks/scenarios.toml on this machine"
        )
    cases = [CaptureCase.parse(text) for text in task["cases"]]
    named = {engine: _names(engine, variants) for engine in engines}

    def each(make: Callable[..., Row], *told: str, engines: list[str] = engines) -> Iterator[Row]:
        for case, engine in itertools.product(cases, engines):
            for name in named[engine]:
                yield make(f"{engine}: {name}", *told, group=str(case))

    yield from each(pending)
    ready = []
    for engine in engines:
        try:
            if "onnx" in engine:
                check_provider(device)  # before minutes go into its graphs
        except ProviderError as error:
            yield from each(absent, str(error), engines=[engine])
        else:
            ready.append(engine)
    for case in cases if ready else []:
        yield from _case(task, case, {engine: named[engine] for engine in ready})


def _names(engine: str, variants: list[str]) -> list[str]:
    """Variants that an engine has: what is written out in Python has no form in a compiler."""
    return [name for name in variants if engine.removeprefix("plain ") in VARIANTS[name].engines]


def _case(task: Task, case: CaptureCase, engines: dict[str, list[str]]) -> Iterator[Row]:
    """Measure one model at one size, in each engine its variants; each failure is a row."""
    ways = [(engine, name) for engine, names in engines.items() for name in names]
    forget()
    try:
        model = RandomModel(case, PRECISIONS[task["precision"]], task["device"])
        wanted = outputs_of(model, VARIANTS[task["reference"]])
    except Exception as error:  # memory, most likely; other cases may be smaller
        for engine, name in ways:
            yield _not_run(f"{engine}: {name}", str(case), error)
        return
    tolerances = {name: task[name] for name in ("tolerance", "mask_tolerance")}
    for engine, name in ways:
        row_name = f"{engine}: {name}"
        check = partial(same_outputs, row_name, wanted=wanted, **tolerances)
        runs = Repeats(task.runs, task.warm_up, check)
        measure = partial(_measure, task, model, engine, VARIANTS[name], runs)
        yield _row(row_name, str(case), model.nbytes, measure)


def _measure(
    task: Task, model: RandomModel, engine: str, variant: Variant, runs: Repeats
) -> Figure:
    """Measure one variant in one engine."""
    if engine == "compile":
        return run_compiled(model, variant, runs, backend=task["compile_backend"])
    if "onnx" not in engine:
        return run_eager(model, variant, runs)
    with tempfile.TemporaryDirectory() as folder:
        if engine.startswith("plain"):
            file = Path(folder) / "plain.onnx"
            write_plain_graph(model.module(variant), model.feeds, variant.outputs, file)
        else:
            file = write_graph(model, variant, Path(folder))
        feeds = {name: value.cpu().numpy() for name, value in model.feeds.items()}
        return run_graph(file, feeds, variant, device=model.device, runs=runs)


def _row(name: str, group: str, weights: int, measure: Callable[[], Figure]) -> Row:
    forget()
    try:
        figure, peak = with_host_peak(measure)
    except Exception as error:  # engines' errors share no base
        return _not_run(name, group, error)
    return timed(
        name,
        figure.timing,
        group=group,
        host_bytes=peak,
        device_bytes=figure.memory_bytes,
        weights_bytes=weights,
        **figure.notes,
    )


def _not_run(name: str, group: str, error: Exception) -> Row:
    """Say why there is no figure, and whether that is this machine's or a fault."""
    if isinstance(error, torch.OutOfMemoryError):
        return absent(name, out_of_memory(), group=group)
    if isinstance(error, ProviderError):
        return absent(name, str(error), group=group)
    if isinstance(error, RismError):
        return failed(name, str(error), group=group)
    return failed(name, f"{type(error).__name__}: {one_line(error)}", group=group)
