"""Every graph of a model on the CPU: a plain export, the graph that GPUs take, the form for CPUs.

The model is mini, or has a few blocks of the published widths with random weights. Inputs are those
of one image and one expression, as the segmenter feeds them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.plain_onnx import write_plain_graph
from benchmarks.harness.checks import same_values
from benchmarks.harness.rows import EXAMPLE, Row, Task, time_ways
from benchmarks.synthetic.checkpoints import parse_blocks, write_model
from rism.export import ExportOptions, export_bundle
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.base import Arrays, Engine
from rism.runtime.engines.cpu_threads import cpu_count
from rism.runtime.engines.onnxruntime import CPU
from rism.runtime.engines.onnxruntime_session import open_session
from rism.runtime.engines.selection import EngineRequest, select_engines

PLAIN, GRAPH, CPU_FORM = "plain export", "the graph", "its form for CPUs"
_CAPTURE = "vectors"


def measure(task: Task) -> Iterator[Row]:
    """Measure every stage of one model, three ways by turns."""
    precision = PRECISIONS["fp32"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = task["model"]
        if model != "mini":
            model = str(folder / "checkpoint")
            write_model(folder / "checkpoint", task["model"], parse_blocks(task["blocks"]))
        level = task["size_level"] or None
        options = ExportOptions(precision="fp32", size_level=level, parity="blocks")
        export_bundle(model, folder / "bundle", options)
        bundle, opened = (
            Bundle.open(folder / "bundle", verify=False),
            open_model(find_checkpoint(model)),
        )
        if level is not None:
            opened.spec = opened.spec.at_level(level)
        for stage, feeds in _record(bundle).items():
            logical = stage.partition("@")[0]
            yield from _stage(
                task, bundle, stage, feeds, _module(opened, logical, precision), folder
            )


def _record(bundle: Bundle) -> dict[str, Arrays]:
    """Segment an image, and keep what each graph was fed."""
    selection = select_engines(bundle, _CAPTURE, ["onnxruntime-cpu"], EngineRequest())
    engines = {name: _Recorder(engine) for name, engine in selection.load().items()}
    Segmenter(bundle, engines, capture=_CAPTURE).segment(EXAMPLE, "the green van", paper=True)
    return {
        f"transformer.{_CAPTURE}" if name == "transformer" else name: engine.fed
        for name, engine in engines.items()
    }


class _Recorder:
    """An engine that keeps what it was fed last."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.provider = engine, engine.provider
        self.fed: Arrays = {}

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        self.fed = dict(feeds)
        return self._engine.run(feeds)


def _module(model: OpenModel, stage: str, precision: Any) -> nn.Module:
    """The module of a graph, with its weights."""
    if stage.startswith("transformer"):
        step = model.transformer(precision).fill()
        return CaptureGraph(step, model.spec, CaptureOptions(_CAPTURE), precision)
    part = getattr(model, stage)(precision)
    filled: nn.Module = part.fill()
    return filled


def _stage(
    task: Task, bundle: Bundle, stage: str, feeds: Arrays, module: nn.Module, folder: Path
) -> list[Row]:
    spec = bundle.manifest.graphs[stage]
    given = {name: torch.from_numpy(feeds[name]).contiguous() for name in spec.inputs}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**given)
    plain = folder / f"{stage}.plain.onnx"
    write_plain_graph(module, given, list(spec.outputs), plain)
    del module
    files = {PLAIN: plain, GRAPH: bundle.file(spec.file), CPU_FORM: bundle.file(spec.cpu or "")}
    ways: dict[str, partial[Any]] = {}
    wanted: Arrays = {}
    for name, file in files.items():
        session = open_session(file, CPU, 0, cpu_count())
        inputs = {each.name: given[each.name].numpy() for each in session.get_inputs()}
        found = dict(zip(spec.outputs, session.run(list(spec.outputs), inputs), strict=True))
        wanted = wanted or found
        for output, array in found.items():
            same_values(f"{name}: {output}", array, wanted[output], task["tolerance"])
        ways[name] = partial(session.run, None, inputs)
    facts = {"flop": counter.get_total_flops(), "weights_bytes": _weights(bundle, stage)}
    return time_ways(task, ways, group=stage, **facts)


def _weights(bundle: Bundle, stage: str) -> int:
    return bundle.file(f"{stage.partition('.')[0]}.weights").stat().st_size
