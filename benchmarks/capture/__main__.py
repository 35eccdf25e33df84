"""`python -m benchmarks.capture`: what reading the method's quantities costs a forward pass.

Transformers of random weights at full size, on one picture: no capture (the baseline), capture
as rism exports it, capture as the paper writes it; in PyTorch, in torch.compile and in ONNX
Runtime. Times are medians of single passes; memory is the device's peak, weights included. Beside
them stand the paper's own figures where it has some (`published`; another GPU, so no ratio is made
of them) and, once all is measured, the arithmetic of a pass, counted on the shapes of its products
and attentions.

The models are FLUX.2-klein's (4b, 9b: 512 prompt tokens) and Step1X-Edit's (step1x-1.0: connector
included, 640 prompt tokens, 350 of them real and the rest zeros behind a mask).

It needs an NVIDIA GPU (what does not fit says so), a CUDA build of PyTorch with Triton, and what
rism-seg[export] names: of that, diffusers, transformers, accelerate, safetensors, huggingface-hub,
psutil, onnx, onnx-ir, onnxscript and an onnxruntime are imported. Nothing is fetched. A machine
that lacks diffusers takes its wheel on PYTHONPATH: it is pure Python. The engine onnxruntime needs
onnxruntime-gpu; where CUDA is not among its providers, its rows say so and the other engines run.
Graphs and their weights are written into the system's temporary folder (TMPDIR): 9b takes 18 GB
there, step1x-1.0 25 GB. Compiling takes minutes for each variant of a large model; with --engines
and --variants a run is cut into several.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.capture.models import Case, RandomModel, count_flop
from benchmarks.capture.onnx import run_graph, write_graphs
from benchmarks.capture.pytorch import (
    attention_kernels,
    forget,
    out_of_memory,
    run_compiled,
    run_eager,
)
from benchmarks.capture.report import Outcome, Report
from benchmarks.capture.variants import BASELINE, VARIANTS
from rism.export.precision import PRECISIONS
from rism.runtime.errors import InputError, ProviderError, RismError, one_line

ENGINES = ("torch", "compile", "onnxruntime")
AGAIN = f"{BASELINE} again"
_MODELS = "4b@512,4b@1024,9b@1024,step1x-1.0@512"
T = TypeVar("T")


def main() -> None:
    """Run what was asked for; a wrong request is one line and exit code 1."""
    try:
        _run(_arguments())
    except RismError as error:
        raise SystemExit(f"error: {error}") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--models", default=_MODELS, help="or tiny@128,tiny-step1x@128, on a CPU")
    parser.add_argument("--precision", choices=[*PRECISIONS], help="bf16; fp32 on a CPU")
    parser.add_argument(
        "--engines", default=",".join(ENGINES), help=f"some of {', '.join(ENGINES)}"
    )
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of the default")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args()


def _run(args: argparse.Namespace) -> None:
    cases = list(dict.fromkeys(Case.parse(text) for text in _listed(args.models)))
    engines = _known("engine", _listed(args.engines), ENGINES)
    asked = _known("variant", _listed(args.variants), VARIANTS)
    # In this order: the baseline comes first, and what others are compared with before them.
    variants = [name for name in VARIANTS if name in asked or name == BASELINE]
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            f"device cuda is not here: PyTorch {torch.__version__} finds none, expected an NVIDIA "
            "GPU and a CUDA build of PyTorch; use --device cpu --models tiny@128 to try it out"
        )
    if args.runs < 1:
        raise InputError(f"runs is {args.runs}, expected at least 1")
    precision = PRECISIONS[args.precision or ("bf16" if args.device == "cuda" else "fp32")]
    report = Report(args.device, precision.name, variants, args.json)
    for case in cases:
        report.begin(case)
        model = _attempt(partial(RandomModel, case, precision, args.device))
        if isinstance(model, RandomModel):
            report.note(weights_bytes=model.nbytes, torch_attention=attention_kernels(model))
        for engine in [name for name in ENGINES if name in engines]:
            wanted = [name for name in variants if engine in VARIANTS[name].engines]
            for name, outcome in _measure(engine, model, wanted, args.runs):
                report.add(engine, name, outcome)
        del model  # before the next one is made
    report.end()
    # By shapes, on no device: a lent GPU has done its work by now.
    for case in cases:
        flop = {name: count_flop(case, VARIANTS[name], precision) for name in variants}
        report.count(case, flop | {AGAIN: flop[BASELINE]})


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _known(what: str, given: list[str], known: Iterable[str]) -> list[str]:
    unknown = [one_line(name, limit=40) for name in given if name not in known]
    if unknown or not given:
        raise InputError(
            f"{what} '{unknown[0] if unknown else ''}' is not known, expected some of "
            f"{', '.join(known)}"
        )
    return list(dict.fromkeys(given))


def _measure(
    engine: str, model: RandomModel | str, names: list[str], runs: int
) -> Iterator[tuple[str, Outcome]]:
    """Measure variants in one engine, one after the other; or repeat why there is no model."""
    if isinstance(model, str):
        yield from ((name, model) for name in names)
    elif engine == "onnxruntime":
        yield from _through_onnx(model, names, runs)
    elif engine == "compile":
        for name in names:
            yield name, _attempt(partial(run_compiled, model, VARIANTS[name], runs=runs))
    else:
        for name in names:
            yield name, _attempt(partial(run_eager, model, VARIANTS[name], runs=runs))
        # How far from 1 a ratio is when nothing differs.
        yield AGAIN, _attempt(partial(run_eager, model, VARIANTS[BASELINE], runs=runs))


def _through_onnx(model: RandomModel, names: list[str], runs: int) -> Iterator[tuple[str, Outcome]]:
    """Write all graphs, let go of PyTorch's weights, run each."""
    with tempfile.TemporaryDirectory() as folder:
        files = _attempt(partial(write_graphs, model, names, Path(folder)))
        if isinstance(files, str):
            yield from ((name, files) for name in names)
            return
        feeds = {name: value.cpu().numpy() for name, value in model.feeds.items()}
        model.drop_weights()
        for name, file in files.items():
            run = partial(run_graph, file, feeds, VARIANTS[name], device=model.device, runs=runs)
            yield name, _attempt(run)


def _attempt(measure: Callable[[], T]) -> T | str:
    """Measure, or say why not: memory, or an error of an engine, which share no base."""
    forget()
    try:
        return measure()
    except torch.OutOfMemoryError:
        return out_of_memory()
    except Exception as error:
        return f"not run: {one_line(error)}"


if __name__ == "__main__":
    main()
