"""Time and memory of the same modules as ONNX graphs, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from benchmarks.capture.models import RandomModel
from benchmarks.capture.pytorch import Figure
from benchmarks.capture.variants import Variant, capturing
from benchmarks.harness.measure import Repeats, forget, repeat
from rism.export.graph.cpu_form import fit_cpu
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.trace import trace
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.onnxruntime_session import open_session
from rism.runtime.engines.providers import check_provider, find_provider


def write_graph(model: RandomModel, variant: Variant, folder: Path) -> Path:
    """Export a variant as rism does, weights straight from the device, and return its file.

    Raises:
        ProviderError: ONNX Runtime cannot run on this device; nothing is written.
        ExportError: The variant cannot be traced.
    """
    check_provider(model.device)
    part, for_cpu = model.part(), model.device == "cpu"
    module = capturing(part.module, model.spec, variant, model.precision, for_cpu=for_cpu)
    graph = trace(module.eval(), model.inputs(), outputs=variant.outputs)
    with WeightFile(folder / "transformer.weights") as weights:
        store_weights(graph, {f"dit.{n}": rule for n, rule in part.rules.items()}, weights)
    if for_cpu:
        fit_cpu(graph)
    ir.save(graph, folder / "transformer.onnx")
    return folder / "transformer.onnx"


def run_graph(
    file: Path,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    variant: Variant,
    *,
    device: str,
    runs: Repeats,
) -> Figure:
    """Run a graph, inputs and outputs staying on the device."""
    forget()
    before = _free(device)
    # As the runtime opens it, and asked besides which provider runs which node.
    recorded = {"session.record_ep_graph_assignment_info": "1"}
    session = open_session(file, find_provider(device).backend, 0, cpu_count(), entries=recorded)
    binding = session.io_binding()
    for name in [value.name for value in session.get_inputs()]:
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(feeds[name], device, 0))
    for name in variant.outputs:
        binding.bind_output(name, device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    run()
    found = dict(zip(variant.outputs, binding.copy_outputs_to_cpu(), strict=True))
    if runs.check is not None:
        runs.check(found)
    timing = repeat(run, runs=runs.runs, warm_up=runs.warm_up)
    memory = None if before is None else before - (_free(device) or 0)
    return Figure(timing, memory, found, {"nodes": _nodes(session)})


def _nodes(session: Any) -> dict[str, int]:
    """How many nodes each provider runs: what is left to the CPU is not hidden."""
    counts: dict[str, int] = {}
    for graph in session.get_provider_graph_assignment_info():
        counts[graph.ep_name] = counts.get(graph.ep_name, 0) + len(graph.get_nodes())
    return counts


def _free(device: str) -> int | None:
    return None if device == "cpu" else torch.cuda.mem_get_info()[0]
