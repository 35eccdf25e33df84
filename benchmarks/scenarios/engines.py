"""What building engines takes, and which of their layers are fused.

Engines of TensorRT for RTX, which builds without a GPU, for graphs of the published widths. Weights
are sparse files (benchmarks/synthetic/sparse_graphs.py) and inputs of the engines, so that only
the graph is in memory.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from benchmarks.harness.measure import Timing
from benchmarks.harness.rows import Row, Task, check_known, failed, timed
from benchmarks.synthetic.checkpoints import MODELS, parse_blocks
from benchmarks.synthetic.sparse_graphs import SparseWeights, open_sparse, quantise_sparse
from rism.export.engines.forms import bring_into_form
from rism.export.engines.process import BuildJob, build_graph
from rism.export.engines.targets import TARGETS, check_gpus, form_for, installed_version, parse_gpus
from rism.export.engines.weights import weights_to_inputs
from rism.export.errors import BuildError
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.engines.shape_profiles import profile, ranges

TARGET = TARGETS["tensorrt-rtx"]


def measure(task: Task) -> Iterator[Row]:
    """Build every graph in every precision, for each model with each number of blocks."""
    models = check_known("model", task["models"], MODELS)
    for name, blocks in itertools.product(models, task["blocks"]):
        with tempfile.TemporaryDirectory() as place:
            sparse = open_sparse(name, Path(place) / "model", parse_blocks(blocks))
            for graph, precision in itertools.product(task["graphs"], task["precisions"]):
                if not sparse.has(graph):
                    continue
                if precision == "fp8" and not graph.startswith("transformer."):
                    continue
                row_name, group = f"{graph}, {precision}", f"{name}, {blocks} blocks"
                yield _build(prepare(sparse, graph, precision), row_name, group, Path(place))


def _build(prepared: PreparedEngine, name: str, group: str, work: Path) -> Row:
    try:
        facts = prepared.build(work)
    except BuildError as error:
        return failed(name, str(error), group=group)
    timing = Timing((facts.pop("seconds"),))
    return timed(name, timing, group=group, host_bytes=facts.pop("peak_bytes"), **facts)


@dataclass(frozen=True)
class PreparedEngine:
    """A traced graph in the library's form, and what is wanted of it."""

    model: ir.Model
    job: BuildJob
    seconds: float

    def build(self, work: Path) -> dict[str, Any]:
        """Build the engine, and throw it away.

        Returns:
            Seconds, bytes, and the answers of its layers, for a JSON file.

        Raises:
            BuildError: the library refused it, or crashed.
        """
        plan = work / f"{self.job.graph}.plan"
        built = build_graph(self.model, self.job, plan, timeout_s=1500)
        plan.unlink()
        return {
            "seconds_to_trace": round(self.seconds, 1),
            "seconds": round(built.seconds, 1),
            "peak_bytes": built.peak_bytes,
            "plan_bytes": built.plan_bytes,
            "activation_bytes": built.activation_bytes,
            "layers": len(built.layers),
            "checks": {check.question: f"{check.answer}: {check.detail}" for check in built.checks},
        }


def prepare(
    sparse: SparseWeights, graph: str, precision: str, *, gpus: str | None = None
) -> PreparedEngine:
    """Trace a graph and bring it into the form that is built."""
    start = time.perf_counter()
    model = sparse.graph(graph, "bf16" if precision == "fp8" else precision)
    inputs = _inputs(model)
    attentions = bring_into_form(model, form_for(TARGET.name, installed_version(TARGET)))
    quantised = 0
    if precision == "fp8":
        stored = sparse.folder / f"{graph}.e4m3.weights"
        stored.unlink(missing_ok=True)
        quantised = quantise_sparse(model, stored)
    weights_to_inputs(model)
    spec = sparse.model.spec
    known = ranges(spec.geometry, spec.prompt, spec.noise_rows, shapes=None, batch=(1, 1, 8))
    asked = () if gpus is None else parse_gpus(gpus)
    wanted = BuildJob(
        graph=graph,
        target=TARGET,
        gpus=check_gpus(TARGET, asked, precision, ()),
        precision=precision,
        weights="bound",
        inputs=inputs,
        profile=profile(inputs, known),
        weights_beside=sparse.folder / "any",
        attentions=attentions,
        quantised=quantised,
    )
    return PreparedEngine(model, wanted, time.perf_counter() - start)


def _inputs(model: ir.Model) -> dict[str, TensorSpec]:
    found = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
        found[value.name] = TensorSpec(value.name, str(value.dtype.numpy()), shape)
    return found
