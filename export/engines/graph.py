"""One graph to one plan, and what its layers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from rism.export.engines.forms import Attentions
from rism.export.engines.listing import Check, check_layers
from rism.export.engines.process import Built, Job, run_job
from rism.export.engines.targets import Target
from rism.runtime.bundle.engine_spec import ShapeRange

__all__ = ["Request", "build_graph"]

FLAGS: Mapping[str, tuple[str, ...]] = {
    "plan": (),
    "stripped": ("STRIP_PLAN", "REFIT_IDENTICAL"),
    "bound": (),
}
_MATRICES = "transformer.matrices"


@dataclass(frozen=True)
class Request:
    """What is wanted of one graph.

    Attributes:
        graph: its name in the manifest.
        target: the library.
        gpus: compute capabilities.
        precision: of its products: "fp32", "fp16", "bf16" or "fp8".
        weights: "plan", "stripped" or "bound".
        profile: shapes by logical name of input.
        names: of the inputs in the graph, by logical name.
        weights_beside: a path in the folder of the graph's external data.
    """

    graph: str
    target: Target
    gpus: Sequence[str]
    precision: str
    weights: str
    profile: Mapping[str, ShapeRange]
    names: Mapping[str, str]
    weights_beside: Path


def build_graph(
    model: ir.Model,
    request: Request,
    plan: Path,
    *,
    attentions: Attentions,
    quantised: int = 0,
    timeout_s: float = 3600.0,
) -> tuple[Built, list[Check]]:
    """Build a graph as it is, and question its layers.

    Args:
        model: in the library's form, quantised and with weights as inputs if so wanted.
        request: the rest.
        plan: file to write, in a folder for temporary files.
        attentions: what `bring_into_form` left to fused kernels.
        quantised: how many products are FP8.
        timeout_s: after which the build is stopped.

    Raises:
        BuildError: the library refused it, crashed, or took too long.
    """
    file = plan.with_suffix(".graph")
    file.write_bytes(ir.to_proto(model).SerializeToString())
    job = Job(
        name=request.graph,
        module=request.target.module,
        graph=file,
        weights_beside=request.weights_beside,
        flags=FLAGS[request.weights],
        compute_capabilities=request.gpus if request.target.compute_capabilities else (),
        profile={request.names[logical]: shape for logical, shape in request.profile.items()},
        plan=plan,
    )
    built = run_job(job, timeout_s=timeout_s)
    file.unlink()
    matrices = request.graph.startswith(_MATRICES)
    checks = check_layers(
        built.layers,
        precision=request.precision,
        attentions=attentions.fused,
        quantised=quantised,
        written_out=attentions.written_out,
        tokens=None if matrices else request.profile.get("clean_latents"),
    )
    return built, checks
