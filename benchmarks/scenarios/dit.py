"""The diffusion transformer with random weights: every engine with every way of capturing.

A row is called "engine: variant". Outputs, and the masks that follow from them, are held against
the paper's literal capture, in the same process, before anything is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.plain_onnx import write_plain_graph
from benchmarks.capture_engines import (
    Arrays,
    Check,
    Figure,
    forget,
    out_of_memory,
    outputs_of,
    run_compiled,
    run_eager,
)
from benchmarks.capture_models import Case, RandomModel
from benchmarks.capture_onnx import run_graph, write_graphs
from benchmarks.capture_variants import VARIANTS
from benchmarks.checks import same_outputs
from benchmarks.errors import ConfigError, ScenarioError
from benchmarks.fp8_linear import use_fp8
from benchmarks.measure import host_peak
from benchmarks.rows import Job, Row, absent, failed, timed
from rism.export.precision import PRECISIONS
from rism.runtime.errors import ProviderError, RismError, one_line

__all__ = ["ENGINES", "measure"]

ENGINES = ("torch", "compile", "fp8", "compile fp8", "onnxruntime", "plain onnxruntime")


def measure(job: Job) -> list[Row]:
    """Measure every case with every engine and variant that is asked for."""
    engines = _known("engine", job.texts("engines"), ENGINES)
    variants = _known("variant", job.texts("variants"), tuple(VARIANTS))
    [reference] = _known("variant", [job.get("reference", str)], tuple(VARIANTS))
    precision, device = job.get("precision", str), job.get("device", str)
    _known("precision", [precision], tuple(PRECISIONS))
    _known("device", [device], ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(
            f"PyTorch {torch.__version__} finds no CUDA device, expected an NVIDIA GPU and a CUDA "
            "build of PyTorch: use benchmarks/scenarios.toml on this machine"
        )
    rows = []
    for case in [Case.parse(text) for text in job.texts("cases")]:
        model = RandomModel(case, PRECISIONS[precision], device)
        wanted = outputs_of(model, VARIANTS[reference])
        for engine in engines:
            rows += _engine(job, model, engine, variants, wanted)
        del model
        forget()
    return rows


def _known(what: str, given: list[str], known: tuple[str, ...]) -> list[str]:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{what} '{one_line(name, limit=40)}' is not known, expected some of "
                f"{', '.join(known)}"
            )
    return given


def _engine(
    job: Job, model: RandomModel, engine: str, variants: list[str], wanted: Arrays
) -> list[Row]:
    """Measure variants in one engine, one after the other; each failure is a row."""
    runs, warm_up = job.runs, job.warm_up
    # What is written out in Python has no form of its own in a compiler or a graph.
    kind = "onnxruntime" if "onnx" in engine else "compile" if "compile" in engine else "torch"
    names = [name for name in variants if kind in VARIANTS[name].engines]
    weights = model.nbytes
    if engine.endswith("fp8"):
        if use_fp8(model.step, leave=model.case.sized.modulation) == 0:
            raise ScenarioError(f"{model.case} has no product that FP8 can take")
        weights = sum(each.nbytes for each in (*model.step.parameters(), *model.step.buffers()))
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in names:
            check = partial(_check, job, f"{engine}: {name}", wanted)
            measure = _measurer(job, model, engine, name, Path(folder), runs, warm_up, check)
            rows.append(_row(f"{engine}: {name}", str(model.case), weights, measure))
        return rows


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
    runs: int,
    warm_up: int,
    check: Check,
) -> Callable[[], Figure]:
    """Return what measures one variant in one engine."""
    variant = VARIANTS[name]
    given: dict[str, Any] = {"runs": runs, "warm_up": warm_up, "check": check}
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
    except torch.OutOfMemoryError:
        return failed(name, out_of_memory(), group=group)
    except ProviderError as error:
        return absent(name, str(error), group=group)
    except RismError as error:
        return failed(name, str(error), group=group)
    except Exception as error:  # engines' errors share no base
        return failed(name, f"{type(error).__name__}: {one_line(error)}", group=group)
    return timed(
        name,
        figure.timing,
        group=group,
        host_bytes=peak.nbytes,
        device_bytes=figure.memory_bytes,
        weights_bytes=weights,
        **figure.notes,
    )
