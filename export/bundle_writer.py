"""Writing graphs and weights into a bundle, and comparing each with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part
from rism.export.errors import ExportError
from rism.export.graph.block_products import dequantise, multiply_in_blocks
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.cpu_form import cpu_form, fit_cpu
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.signatures import (
    Size,
    graph_name,
    trace_modulation,
    trace_text,
    trace_transformer,
    trace_vae,
    trace_vision,
)
from rism.export.options import ExportOptions
from rism.export.parity.gate import Check, Checks, Gate
from rism.export.plan.checkpoint_plan import ExportPlan
from rism.export.precision import Precision
from rism.export.progress import Progress
from rism.export.quantisation.layer_report import RoundedLayer, layer_report
from rism.export.spec import OpenModel
from rism.runtime.engines.malloc_trim import trim_malloc

Value = TypeVar("Value")

TEXT_SIDE = ("text_encoder", "vision_encoder")


def open_parts(model: OpenModel, precision: Precision, text: Precision) -> dict[str, Part]:
    """Build the modules of a bundle's graphs, without weights, in the order they are written."""
    parts = {
        "text_encoder": model.text_encoder(text),
        "vae_encoder": model.vae_encoder(precision.in_floats),
        "transformer": model.transformer(precision),
    }
    if (modulation := model.modulation(precision.in_floats)) is not None:
        parts = {"modulation": modulation} | parts
    if (vision := model.vision_encoder(text)) is not None:
        parts = {"vision_encoder": vision} | parts
    return parts


@dataclass(frozen=True)
class TracedGraph:
    """A graph and its form for CPUs, on the weights of one part.

    Attributes:
        graph: its initializers have no values.
        cpu: likewise; the same graph where it needs no other, None where there is no such form.
        part: whose weights they are.
        prefix: stands before the names of the part's weights in the graphs.
    """

    graph: ir.Model
    cpu: ir.Model | None
    part: Part
    prefix: str = ""

    def store(self, file: WeightFile, path: Path) -> None:
        """Save the graphs beside the file of their weights, whose missing ones are added."""
        rules = self._named(self.part.rules)
        rounded = self._named(self.part.rounded)
        dequantise(self.graph, rounded)
        store_weights(self.graph, rules, file)
        file.flush()
        ir.save(self.graph, path)
        if self.cpu is None:
            return
        if self.cpu is not self.graph:
            multiply_in_blocks(self.cpu, rounded)
            store_weights(self.cpu, rules, file)
            file.flush()
        # Latents are packed by two in both directions: their number divides by four.
        fit_cpu(self.cpu, parts=4 if self.part.name == "vae_encoder" else 1)
        ir.save(self.cpu, path.with_name(cpu_form(path.name)))

    def _named(self, by_name: Mapping[str, Value]) -> dict[str, Value]:
        return {f"{self.prefix}{name}": value for name, value in by_name.items()}


@dataclass(frozen=True)
class Export:
    """One export: everything that its steps share."""

    checkpoint: Checkpoint
    model: OpenModel
    options: ExportOptions
    precision: Precision
    text_precision: Precision
    parts: dict[str, Part]
    plan: ExportPlan

    def precision_of(self, part: str) -> Precision:
        """What a part computes in."""
        if part in TEXT_SIDE:
            return self.text_precision
        return self.precision if part == "transformer" else self.precision.in_floats

    @property
    def sizes(self) -> list[Size]:
        """Fixed sizes, or the one that is free."""
        return list(self.model.spec.geometry.sizes) or [None]


class BundleWriter:
    """Writes graphs and weights, one part after the other, and compares each."""

    def __init__(
        self, export: Export, work: Path, noise: np.ndarray[Any, Any], progress: Progress
    ) -> None:
        self.export, self.work, self.noise, self.progress = export, work, noise, progress
        self.graphs: dict[str, str] = {}
        self.weights: dict[str, dict[str, Any]] = {}
        self.rounded: list[RoundedLayer] = []
        self.parity: Checks = {}
        lean = export.plan.parity == "blocks"
        self.models = list(export.model.samples_of_blocks()) if lean else [export.model]
        self.lean = lean
        # One for each model: what PyTorch said of its samples serves several graphs.
        self._gates: dict[int, Gate] = {}
        self._parts: dict[tuple[int, str], Part] = {}

    @property
    def steps(self) -> int:
        """How many steps there are: each graph traced and written, each part checked."""
        export = self.export
        per_size = len(export.sizes) * (1 + len(export.plan.captures))  # the VAE, the transformer
        encoders = len(export.parts) - 2
        by_model = 1 + ("modulation" in export.parts)  # the parts that are compared block by block
        checks = len(export.parts) - by_model + by_model * len(self.models)
        return 2 * (per_size + encoders) + checks

    def text_encoder(self) -> None:
        """Write and compare the text encoder."""
        self._encoder("text_encoder", trace_text, Gate.text_encoder, self.models[:1])

    def vision_encoder(self) -> None:
        """Write and compare the tower that looks at the image for the text encoder."""
        self._encoder("vision_encoder", trace_vision, Gate.vision_encoder, self.models[:1])

    def modulation(self) -> None:
        """Write and compare what makes the transformer's modulation from a prompt."""
        self._encoder("modulation", trace_modulation, Gate.modulation, self.models)

    def _encoder(
        self,
        name: str,
        trace: Callable[..., ir.Model],
        compare: Callable[[Gate, str], dict[str, Check]],
        models: Sequence[OpenModel],
    ) -> None:
        export, spec = self.export, self.export.model.spec
        with self._file(name) as file:
            self._say(f"the {name.replace('_', ' ')}")
            traced = self._trace(export.model, export.parts[name], partial(trace, spec=spec))
            self._save(traced, file, name)
            for model in models:
                compared = self.graphs[name]
                few = getattr(model, name)(export.precision_of(name)) if self.lean else None
                if few is not None:
                    traced = self._trace(model, few, partial(trace, spec=model.spec))
                    compared = self._sample(traced, file)
                self._merge({name: compare(self._gate(model), compared)})
        self._done(name, file)

    def vae_encoder(self) -> None:
        """Write and compare the VAE encoder, at every size."""
        export, name = self.export, "vae_encoder"

        def traced(size: Size) -> TracedGraph:
            def trace(part: Part) -> ir.Model:
                return trace_vae(part, export.model.spec, size)

            return self._trace(export.model, export.parts[name], trace)

        with self._file(name) as file:
            for size in export.sizes:
                self._say("the VAE encoder", size)
                self._save(traced(size), file, graph_name(name, size))
            files = {size: self.graphs[graph_name(name, size)] for size in export.sizes}
            if self.lean and None not in files:
                # Images of a fixed size take gigabytes; the same module takes a small one.
                files = {None: self._sample(traced(None), file, "vae")}
        self.parity[name] = self._gate(export.model).vae_encoder(files)
        self._done(name, file)

    def transformer(self) -> None:
        """Write and compare the transformer, with every capture mode at every size."""
        export = self.export
        with self._file("transformer") as file:
            for size in export.sizes:
                for mode in export.plan.captures:
                    self._say(f"the transformer, capture {mode}", size)
                    traced = self._captured(export.model, export.parts["transformer"], mode, size)
                    self._save(traced, file, graph_name(f"transformer.{mode}", size))
            for model in self.models:
                self._compare(model, file)
        self._done("transformer", file)

    def _compare(self, model: OpenModel, file: WeightFile) -> None:
        """Compare one model's graphs: the bundle's own, or those of a few blocks."""
        export = self.export
        files: dict[Size, dict[str, str]] = {}
        part = model.transformer(export.precision) if self.lean else None
        # At a fixed size every attention matrix of the reference model would be stored.
        sizes: list[Size] = [None] if self.lean else export.sizes
        for size in sizes:
            files[size] = {}
            for mode in export.plan.captures:
                if part is None:
                    files[size][mode] = self.graphs[graph_name(f"transformer.{mode}", size)]
                else:
                    traced = self._captured(model, part, mode, size)
                    files[size][mode] = self._sample(traced, file, mode)
        checked = self._gate(model).transformer(files, self.noise, export.options.feature_site)
        self._merge(checked)

    def _merge(self, checked: Checks) -> None:
        """Keep the larger error of each output, of several models' graphs."""
        for name, found in checked.items():
            merged = self.parity.setdefault(name, {})
            for output, check in found.items():
                if output not in merged or check.error > merged[output].error:
                    merged[output] = check

    def _captured(self, model: OpenModel, part: Part, mode: str, size: Size) -> TracedGraph:
        """Trace the transformer with a capture mode."""
        options, precision = self.export.options, self.export.precision
        capture = CaptureOptions(mode, options.feature_site, options.token_attention)

        def trace(part: Part) -> ir.Model:
            return trace_transformer(part, model.spec, capture, precision, size)

        def trace_for_cpu(part: Part) -> ir.Model:
            wide = precision.on_cpu
            assert wide is not None, "asked only where there is such a form"
            # Matrices are written out as they are.
            return trace_transformer(
                part, model.spec, capture, wide, size, written_out=mode != "matrices"
            )

        same = mode == "matrices" and precision.on_cpu == precision
        return self._trace(model, part, trace, None if same else trace_for_cpu, prefix="dit.")

    def _trace(
        self,
        model: OpenModel,
        part: Part,
        trace: Callable[[Part], ir.Model],
        trace_for_cpu: Callable[[Part], ir.Model] | None = None,
        *,
        prefix: str = "",
    ) -> TracedGraph:
        """Trace a part of a model, and again for CPUs where that makes another graph.

        Args:
            model: what the part is of.
            part: as it computes on GPUs.
            trace: makes the graph.
            trace_for_cpu: makes that for CPUs; None for the same function.
            prefix: of the names of weights in the graph.
        """
        precision = self.export.precision_of(part.name)
        graph, wide = trace(part), precision.on_cpu
        if wide is None:
            return TracedGraph(graph, None, part, prefix)
        other = part if wide == precision else self._opened(model, part.name, wide)
        if other is part and trace_for_cpu is None:
            return TracedGraph(graph, graph, part, prefix)
        return TracedGraph(graph, (trace_for_cpu or trace)(other), part, prefix)

    def _opened(self, model: OpenModel, name: str, precision: Precision) -> Part:
        """Build a part in another precision, once."""
        key = (id(model), name)
        if key not in self._parts:
            self._parts[key] = getattr(model, name)(precision)
        return self._parts[key]

    def _gate(self, model: OpenModel) -> Gate:
        trim_malloc()
        self.progress.stage("check against PyTorch")
        export = self.export
        fresh = Gate(model, self.work, export.precision, export.text_precision, lean=self.lean)
        return self._gates.setdefault(id(model), fresh)

    def _say(self, what: str, size: Size = None) -> None:
        self.progress.stage(f"trace {what}" + (f", {size[0]}x{size[1]}" if size else ""))

    def _file(self, name: str) -> WeightFile:
        return WeightFile(self.work / f"{name}.weights", self.progress.advance)

    def _save(self, traced: TracedGraph, file: WeightFile, name: str) -> None:
        self.progress.stage(f"write {name}")
        self.graphs[name] = f"{name.replace('@', '.')}.onnx"
        traced.store(file, self.work / self.graphs[name])

    def _sample(self, traced: TracedGraph, file: WeightFile, mode: str = "text") -> str:
        """Save a graph of a few blocks on the weights that are written already."""
        before, name = file.size, f"sample.{mode}.onnx"
        traced.store(file, self.work / name)
        if file.size > before:
            raise ExportError(
                f"{file.path.name}: a graph of a few blocks asks for weights that the whole has "
                "not: this is a fault in the exporter"
            )
        return name

    def _done(self, name: str, file: WeightFile) -> None:
        for path in self.work.glob("sample.*"):
            path.unlink()
        self.rounded += layer_report(self.export.parts[name], file.rounding_errors)
        self.weights[f"{name}.weights"] = {"sha256": file.sha256, "size": file.size}
