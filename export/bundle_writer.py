"""Writing graphs and weights into a bundle, and comparing each with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part, WeightRule
from rism.export.errors import ExportError
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
from rism.export.spec import ModelSpec, OpenModel
from rism.runtime.engines.malloc_trim import trim_malloc


@dataclass(frozen=True)
class Export:
    """One export: everything that its steps share."""

    checkpoint: Checkpoint
    model: OpenModel
    options: ExportOptions
    precision: Precision
    parts: dict[str, Part]
    plan: ExportPlan

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
        self.parity: Checks = {}
        lean = export.plan.parity == "blocks"
        self.models = list(export.model.samples_of_blocks()) if lean else [export.model]
        self.lean = lean
        # Only float32 is computed on CPUs as fast as its width promises.
        self.for_cpu = export.precision.compute == torch.float32
        # One for each model: what PyTorch said of its samples serves several graphs.
        self._gates: dict[int, Gate] = {}

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
        traced: Callable[[Part, ModelSpec], ir.Model],
        compare: Callable[[Gate, str], dict[str, Check]],
        models: Sequence[OpenModel],
    ) -> None:
        part = self.export.parts[name]
        with self._file(name) as file:
            self._say(f"the {name.replace('_', ' ')}")
            self._save(traced(part, self.export.model.spec), part.rules, file, name)
            for model in models:
                compared = self.graphs[name]
                few = getattr(model, name)(self.export.precision) if self.lean else None
                if few is not None:
                    compared = self._sample(traced(few, model.spec), few.rules, file)
                self._merge({name: compare(self._gate(model), compared)})
        self._done(name, file)

    def vae_encoder(self) -> None:
        """Write and compare the VAE encoder, at every size."""
        export, name = self.export, "vae_encoder"
        with self._file(name) as file:
            for size in export.sizes:
                self._say("the VAE encoder", size)
                graph = trace_vae(export.parts[name], export.model.spec, size)
                self._save(graph, export.parts[name].rules, file, graph_name(name, size))
            files = {size: self.graphs[graph_name(name, size)] for size in export.sizes}
            if self.lean and None not in files:
                # Images of a fixed size take gigabytes; the same module takes a small one.
                graph = trace_vae(export.parts[name], export.model.spec, None)
                files = {None: self._sample(graph, export.parts[name].rules, file, "vae")}
        self.parity[name] = self._gate(export.model).vae_encoder(files)
        self._done(name, file)

    def transformer(self) -> None:
        """Write and compare the transformer, with every capture mode at every size."""
        export = self.export
        with self._file("transformer") as file:
            for size in export.sizes:
                for mode in export.plan.captures:
                    self._say(f"the transformer, capture {mode}", size)
                    graph, cpu, rules = self._captured(
                        export.model, export.parts["transformer"], mode, size
                    )
                    name = graph_name(f"transformer.{mode}", size)
                    self._save(graph, rules, file, name, cpu)
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
                    graph, cpu, rules = self._captured(model, part, mode, size)
                    files[size][mode] = self._sample(graph, rules, file, mode, cpu)
        checked = self._gate(model).transformer(files, self.noise, export.options.feature_site)
        self._merge(checked)

    def _merge(self, checked: Checks) -> None:
        """Keep the larger error of each output, of several models' graphs."""
        for name, found in checked.items():
            merged = self.parity.setdefault(name, {})
            for output, check in found.items():
                if output not in merged or check.error > merged[output].error:
                    merged[output] = check

    def _captured(
        self, model: OpenModel, part: Part, mode: str, size: Size
    ) -> tuple[ir.Model, ir.Model, dict[str, WeightRule]]:
        """Trace the transformer: the graph, its form for CPUs (it may be the same), the weights."""
        options, precision = self.export.options, self.export.precision
        capture = CaptureOptions(mode, options.feature_site, options.token_attention)
        graph = cpu = trace_transformer(part, model.spec, capture, precision, size)
        if self.for_cpu and mode != "matrices":  # which are written out as they are
            cpu = trace_transformer(part, model.spec, capture, precision, size, written_out=True)
        return graph, cpu, {f"dit.{name}": rule for name, rule in part.rules.items()}

    def _gate(self, model: OpenModel) -> Gate:
        trim_malloc()
        self.progress.stage("check against PyTorch")
        fresh = Gate(model, self.work, self.export.precision, lean=self.lean)
        return self._gates.setdefault(id(model), fresh)

    def _say(self, what: str, size: Size = None) -> None:
        self.progress.stage(f"trace {what}" + (f", {size[0]}x{size[1]}" if size else ""))

    def _file(self, name: str) -> WeightFile:
        return WeightFile(self.work / f"{name}.weights", self.progress.advance)

    def _save(
        self,
        graph: ir.Model,
        rules: dict[str, WeightRule],
        file: WeightFile,
        name: str,
        cpu: ir.Model | None = None,
    ) -> None:
        self.progress.stage(f"write {name}")
        self.graphs[name] = f"{name.replace('@', '.')}.onnx"
        self._store(graph, cpu or graph, rules, file, self.graphs[name])

    def _store(
        self,
        graph: ir.Model,
        cpu: ir.Model,
        rules: dict[str, WeightRule],
        file: WeightFile,
        name: str,
    ) -> None:
        """Save a graph and, where CPUs can run it, their form of it."""
        store_weights(graph, rules, file)
        file.flush()
        ir.save(graph, self.work / name)
        if self.for_cpu:
            if cpu is not graph:
                store_weights(cpu, rules, file)
                file.flush()
            # Latents are packed by two in both directions: their number divides by four.
            fit_cpu(cpu, parts=4 if file.path.stem == "vae_encoder" else 1)
            ir.save(cpu, self.work / cpu_form(name))

    def _sample(
        self,
        graph: ir.Model,
        rules: dict[str, WeightRule],
        file: WeightFile,
        mode: str = "text",
        cpu: ir.Model | None = None,
    ) -> str:
        """Save a graph of a few blocks on the weights that are written already."""
        before, name = file.size, f"sample.{mode}.onnx"
        self._store(graph, cpu or graph, rules, file, name)
        if file.size > before:
            raise ExportError(
                f"{file.path.name}: a graph of a few blocks asks for weights that the whole has "
                "not: this is a fault in the exporter"
            )
        return name

    def _done(self, name: str, file: WeightFile) -> None:
        for path in self.work.glob("sample.*"):
            path.unlink()
        self.weights[f"{name}.weights"] = {"sha256": file.sha256, "size": file.size}
