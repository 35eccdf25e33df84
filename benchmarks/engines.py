"""`python -m benchmarks.engines`: what building engines takes, and what their layers say.

Engines of TensorRT for RTX, which builds without a GPU, for graphs of the published widths: with a
few blocks every graph in every precision, and with all blocks the transformers. Weights are holes
(benchmarks/engine_graphs.py) and inputs of the engines, so nothing but the graph is in memory.
`--growth` builds engines with their weights inside for growing numbers of blocks, until the
machine's memory ends.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import psutil

from benchmarks.engine_graphs import MODELS, SparseWeights, open_sparse, quantise_sparse
from benchmarks.harness.measure import environment
from rism.export.engines.errors import BuildError
from rism.export.engines.forms import Attentions, bring_into_form
from rism.export.engines.graph import Request, build_graph
from rism.export.engines.targets import (
    TARGETS,
    check_gpus,
    form_for,
    installed_version,
    parse_gpus,
)
from rism.export.engines.weights import weights_to_inputs
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.engines.shape_profiles import profile, ranges

__all__ = ["Prepared", "build_sparse", "main", "prepare"]

TARGET = TARGETS["tensorrt-rtx"]
ENCODERS = ("text_encoder", "vae_encoder", "vision_encoder")
MODES = ("transformer.vectors", "transformer.scores", "transformer.matrices")


def build_sparse(
    sparse: SparseWeights, graph: str, precision: str, work: Path, **how: Any
) -> dict[str, Any]:
    """Build one engine of a model of empty files: `prepare`, then `Prepared.build`."""
    return prepare(sparse, graph, precision, **how).build(work)


@dataclass(frozen=True)
class Prepared:
    """A traced graph in the library's form, and what is wanted of it."""

    model: ir.Model
    request: Request
    attentions: Attentions
    quantised: int
    seconds: float

    def build(self, work: Path) -> dict[str, Any]:
        """Build the engine, and throw it away.

        Args:
            work: an empty folder for temporary files.

        Returns:
            Seconds, bytes, and the answers of its layers, for a JSON file.

        Raises:
            BuildError: the library refused it, or crashed.
        """
        plan = work / f"{self.request.graph}.plan"
        built, checks = build_graph(
            self.model,
            self.request,
            plan,
            attentions=self.attentions,
            quantised=self.quantised,
            timeout_s=1500,
        )
        size = plan.stat().st_size
        plan.unlink()
        return {
            "seconds_to_trace": round(self.seconds, 1),
            "seconds": round(built.seconds, 1),
            "peak_bytes": built.peak_bytes,
            "plan_bytes": size,
            "activation_bytes": built.activation_bytes,
            "layers": len(built.layers),
            "checks": {check.question: f"{check.answer}: {check.detail}" for check in checks},
        }


def prepare(
    sparse: SparseWeights,
    graph: str,
    precision: str,
    *,
    gpus: str | None = None,
    shapes: str | None = None,
    batch: tuple[int, int, int] = (1, 1, 8),
    weights: str = "bound",
    base: str = "bf16",
) -> Prepared:
    """Trace a graph of a model of holes and bring it into the form that is built.

    Args:
        sparse: the model.
        graph: as in a manifest.
        precision: "fp32", "fp16", "bf16", or "fp8" over `base`.
        gpus: as `--gpu` takes them; None for all.
        shapes: as `--shapes` takes them.
        batch: expressions.
        weights: "bound", or "plan" for an engine with its zeros inside.
        base: what an FP8 graph computes in otherwise.
    """
    start = time.perf_counter()
    model = sparse.graph(graph, base if precision == "fp8" else precision)
    inputs = _inputs(model)
    attentions = bring_into_form(model, form_for(TARGET.name, installed_version(TARGET)))
    quantised = 0
    if precision == "fp8":
        stored = sparse.folder / f"{graph}.e4m3.weights"
        stored.unlink(missing_ok=True)
        quantised = quantise_sparse(model, stored)
    if weights == "bound":
        weights_to_inputs(model)
    spec = sparse.model.spec
    known = ranges(spec.geometry, spec.prompt, spec.noise_rows, shapes=shapes, batch=batch)
    asked = () if gpus is None else parse_gpus(gpus)
    request = Request(
        graph=graph,
        target=TARGET,
        gpus=check_gpus(TARGET, asked, precision, ()),
        precision=precision,
        weights=weights,
        profile=profile(inputs, known),
        names={name: name for name in inputs},
        weights_beside=sparse.folder / "any",
    )
    return Prepared(model, request, attentions, quantised, time.perf_counter() - start)


def _inputs(model: ir.Model) -> dict[str, TensorSpec]:
    found = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
        found[value.name] = TensorSpec(value.name, str(value.dtype.numpy()), shape)
    return found


def _widths(work: Path, models: list[str], blocks: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Every graph in every precision, with a few blocks."""
    for name in models:
        sparse = open_sparse(name, work / f"{name}.few", blocks)
        for precision in ("fp16", "bf16", "fp8"):
            graphs = MODES if precision == "fp8" else (*MODES, *ENCODERS)
            for graph in graphs:
                if graph == "vision_encoder" and sparse.model.spec.prompt.vision is None:
                    continue
                yield _row(sparse, name, graph, precision, work, blocks=list(blocks))
        shutil.rmtree(sparse.folder)


def _whole(work: Path, models: list[str], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """The transformers with all blocks."""
    for name in models:
        sparse = open_sparse(name, work / f"{name}.whole")
        for precision in precisions:
            for graph in ("transformer.vectors", "transformer.scores"):
                yield _row(sparse, name, graph, precision, work, blocks=list(MODELS[name][1]))
        shutil.rmtree(sparse.folder)


def _growth(work: Path, name: str) -> Iterator[dict[str, Any]]:
    """Weights inside the engine, with more and more blocks, until memory ends."""
    factor = 0.0
    for blocks in ((1, 2), (2, 4), (3, 6), (4, 8), (6, 12), (8, 24)):
        sparse = open_sparse(name, work / f"{name}.grows", blocks)
        row = _row(
            sparse, name, MODES[0], "bf16", work, blocks=list(blocks), weights="plan", gpus="sm89"
        )
        size = (sparse.folder / f"{MODES[0]}.bf16.weights").stat().st_size
        row["weight_bytes"] = size
        shutil.rmtree(sparse.folder)
        yield row
        if "refused" in row:
            return
        # The next would be killed, and perhaps others with it: told from this one's growth.
        factor = max(factor, row["peak_bytes"] / size)
        free = psutil.virtual_memory().available
        if 1.5 * factor * size > free:
            yield {"stopped": f"the next needs about {1.5 * factor * size:.3g} of {free} bytes"}
            return


def _row(
    sparse: SparseWeights, name: str, graph: str, precision: str, work: Path, **more: Any
) -> dict[str, Any]:
    row = {"model": name, "graph": graph, "precision": precision, "blocks": more.pop("blocks")}
    if "weights" in more:
        row["weights"] = more["weights"]
    try:
        row |= build_sparse(sparse, graph, precision, work, **more)
        answers = "; ".join(
            f"{question}: {answer.partition(':')[0]}" for question, answer in row["checks"].items()
        )
        said = (
            f"{row['seconds']:6.1f} s {row['peak_bytes'] / 1e9:5.2f} GB, a run "
            f"{(row['activation_bytes'] or 0) / 1e9:5.2f} GB; {answers}"
        )
    except BuildError as error:
        row["refused"] = said = str(error)
    print(f"{name:<11} {row['blocks']!s:<9} {graph:<21} {precision:<5} {said}", flush=True)
    return row


def main() -> None:
    """Build, print and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--models", default="klein-9b,step1x-1.0")
    parser.add_argument("--blocks", default="1,2", help="of the engines of a few blocks")
    parser.add_argument(
        "--parts", default="widths,whole,growth", help="some of widths, whole, growth"
    )
    parser.add_argument("--precisions", default="bf16,fp8", help="of the engines of all blocks")
    parser.add_argument("--folder", type=Path, help="for temporary files: 50 GB, mostly holes")
    parser.add_argument("--json", type=Path, help="write the figures here; other parts stay")
    args = parser.parse_args()
    models, parts = args.models.split(","), args.parts.split(",")
    double, single = (int(count) for count in args.blocks.split(","))
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        work = Path(place)
        runs = {
            "widths": lambda: _widths(work, models, (double, single)),
            "whole": lambda: _whole(work, models, args.precisions.split(",")),
            "growth": lambda: _growth(work, "klein-9b"),
        }
        for part in parts:
            rows: list[dict[str, Any]] = []
            for row in runs[part]():
                rows.append(row)
                _keep(args.json, part, rows)


def _keep(file: Path | None, part: str, rows: list[dict[str, Any]]) -> None:
    if file is None:
        return
    known = json.loads(file.read_text()) if file.exists() else {}
    known |= {
        "library": f"{TARGET.name} {installed_version(TARGET)}",
        "environment": environment(),
        part: rows,
    }
    file.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
