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
from typing import Any

import torch

from benchmarks.baselines.plain_onnx import write_plain_graph
from benchmarks.capture.models import Case, RandomModel
from benchmarks.capture.onnx import run_graph, write_graphs
from benchmarks.capture.pytorch import (
    Arrays,
    Check,
    Figure,
    forget,
    out_of_memory,
    outputs_of,
    run_compiled,
    run_eager,
)
from benchmarks.capture.variants import VARIANTS
from benchmarks.fp8.linear import use_fp8
from benchmarks.harness.checks import same_outputs
from benchmarks.harness.errors import ConfigError, NoRoomError, ScenarioError
from benchmarks.harness.measure import host_peak
from benchmarks.harness.rows import Job, Row, absent, failed, pending, timed
from rism.export.precision import PRECISIONS
from rism.runtime.engines.providers import check_provider
from rism.runtime.errors import ProviderError, RismError, one_line

__all__ = ["ENGINES", "measure"]

ENGINES = ("torch", "compile", "fp8", "compile fp8", "onnxruntime", "plain onnxruntime")


def measure(job: Job) -> Iterator[Row]:
    """Measure every case with every engine and variant that is asked for.

    All rows are announced first: whoever ends this process knows what was not reached.
    """
    engines = _known("engine", job.texts("engines"), ENGINES)
    variants = _known("variant", job.texts("variants"), tuple(VARIANTS))
    _known("variant", [job.get("reference", str)], tuple(VARIANTS))
    precision, device = job.get("precision", str), job.get("device", str)
    _known("precision", [precision], tuple(PRECISIONS))
    _known("device", [device], ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(
            f"PyTorch {torch.__version__} finds no CUDA device, expected an NVIDIA GPU and a CUDA "
            "build of PyTorch: use benchmarks/scenarios.toml on this machine"
        )
    cases = [Case.parse(text) for text in job.texts("cases")]
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
        yield from _case(job, case, {engine: named[engine] for engine in ready})


def _names(engine: str, variants: list[str]) -> list[str]:
    """Variants that an engine has: what is written out in Python has no form in a compiler."""
    kind = "onnxruntime" if "onnx" in engine else "compile" if "compile" in engine else "torch"
    return [name for name in variants if kind in VARIANTS[name].engines]


def _case(job: Job, case: Case, engines: dict[str, list[str]]) -> Iterator[Row]:
    """Measure one model at one size in all engines, each with its variants."""
    forget()
    try:
        model = RandomModel(case, PRECISIONS[job.get("precision", str)], job.get("device", str))
        wanted = outputs_of(model, VARIANTS[job.get("reference", str)])
    except Exception as error:  # memory, most likely; other cases may be smaller
        for engine, names in engines.items():
            for name in names:
                yield _not_run(f"{engine}: {name}", str(case), error)
        return
    for engine, names in engines.items():
        yield from _engine(job, model, engine, names, wanted)


def _known(what: str, given: list[str], known: tuple[str, ...]) -> list[str]:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{what} '{one_line(name, limit=40)}' is not known, expected some of "
                f"{', '.join(known)}"
            )
    return given


def _engine(
    job: Job, model: RandomModel, engine: str, names: list[str], wanted: Arrays
) -> Iterator[Row]:
    """Measure variants in one engine, one after the other; each failure is a row."""
    weights = model.nbytes
    if engine.endswith("fp8"):
        if use_fp8(model.step, leave=model.case.sized.modulation) == 0:
            raise ScenarioError(f"{model.case} has no product that FP8 can take")
        weights = sum(each.nbytes for each in (*model.step.parameters(), *model.step.buffers()))
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            check = partial(_check, job, f"{engine}: {name}", wanted)
            measure = _measurer(job, model, engine, name, Path(folder), check)
            yield _row(f"{engine}: {name}", str(model.case), weights, measure)


def _check(job: Job, name: str, wanted: Arrays, found: Arrays) -> None:
    same_outputs(
        name,
        found,
        wanted,
        tolerance=job.get("tolerance", float),
        mask_tolerance=job.get("mask_tolerance", float),
    )


def _measurer(
    job: Job,
    model: RandomModel,
    engine: str,
    name: str,
    folder: Path,
    check: Check,
) -> Callable[[], Figure]:
    """Return what measures one variant in one engine."""
    variant = VARIANTS[name]
    given: dict[str, Any] = {"runs": job.runs, "warm_up": job.warm_up, "check": check}
    if engine in ("torch", "fp8"):
        return lambda: run_eager(model, variant, **given)
    if engine in ("compile", "compile fp8"):
        backend = job.get("compile_backend", str)
        return lambda: run_compiled(model, variant, backend=backend, **given)
    return lambda: _through_onnx(model, name, folder, plain=engine.startswith("plain"), given=given)


def _through_onnx(
    model: RandomModel, name: str, folder: Path, *, plain: bool, given: dict[str, Any]
) -> Figure:
    """Write a graph, ours or one without our passes, and run it."""
    variant = VARIANTS[name]
    place = folder / name.replace(" ", "_")
    place.mkdir()
    if plain:
        file = place / "plain.onnx"
        write_plain_graph(model.module(variant), model.feeds, variant.outputs, file)
    else:
        file = write_graphs(model, [name], place)[name]
    feeds = {name: value.cpu().numpy() for name, value in model.feeds.items()}
    figure = run_graph(file, feeds, variant, device=model.device, **given)
    for each in place.iterdir():
        each.unlink()  # the next variant's weights take as much
    return figure


def _row(name: str, group: str, weights: int, measure: Callable[[], Figure]) -> Row:
    forget()
    try:
        with host_peak() as peak:
            figure = measure()
    except Exception as error:  # engines' errors share no base
        return _not_run(name, group, error)
    return timed(
        name,
        figure.timing,
        group=group,
        host_bytes=peak.nbytes,
        device_bytes=figure.memory_bytes,
        weights_bytes=weights,
        **figure.notes,
    )


def _not_run(name: str, group: str, error: Exception) -> Row:
    """Say why there is no figure, and whether that is this machine's or a fault."""
    if isinstance(error, torch.OutOfMemoryError):
        return failed(name, out_of_memory(), group=group)
    if isinstance(error, ProviderError | NoRoomError):
        return absent(name, str(error), group=group)
    if isinstance(error, RismError):
        return failed(name, str(error), group=group)
    return failed(name, f"{type(error).__name__}: {one_line(error)}", group=group)
