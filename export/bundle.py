"""Writing a bundle: open, plan, trace, stream, compare, rename (docs/bundle.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx_ir as ir

from rism.export.capture import CAPTURE_MODES, FEATURE_SITES
from rism.export.checkpoint import (
    Checkpoint,
    content_digest,
    find_checkpoint,
    pipeline_name,
)
from rism.export.errors import UnsupportedModelError
from rism.export.families import FAMILIES
from rism.export.graph_inputs import (
    Size,
    graph_name,
    trace_text,
    trace_transformer,
    trace_vae,
)
from rism.export.graphs import CaptureOptions
from rism.export.manifest import write_manifest
from rism.export.parity import Checks, Gate
from rism.export.plan import ExportPlan, make_plan
from rism.export.precision import PRECISIONS, Precision
from rism.export.progress import Progress
from rism.export.spec import OpenModel
from rism.export.weightless import Part, WeightRule
from rism.export.weights import WeightFile, store_weights
from rism.export.workplace import check_output, workplace
from rism.runtime.bundle import Bundle
from rism.runtime.errors import InputError, one_line

__all__ = ["ExportOptions", "ExportReport", "export_bundle", "plan_export"]

_NOISE_SEED = 0
_PARITIES = ("auto", "full", "blocks")


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Attributes:
        captures: capture modes to include, the default one first.
        feature_site: "mmsa", "adaln" or "block" (table 3 of the paper).
        token_attention: add attention per prompt token to every transformer graph.
        precision: "fp32", "bf16", "fp16", or None for the model's own.
        size_level: bring every picture to about this many pixels squared, as the paper does;
            None for what the model's pipeline does.
        sizes: widths and heights of graphs of fixed size; empty for one graph of any size.
        template: the instruction, with {expression} in it; None for "remove {expression}".
        parity: "full" compares whole graphs with PyTorch, "blocks" one block of each kind on
            the bundle's weights, "auto" chooses by the memory that is free.
        revision: branch, tag or commit on the hub.
        offline: do not ask the hub.
    """

    captures: Sequence[str] = ("vectors",)
    feature_site: str = "mmsa"
    token_attention: bool = False
    precision: str | None = None
    size_level: int | None = None
    sizes: Sequence[tuple[int, int]] = field(default=())
    template: str | None = None
    parity: str = "auto"
    revision: str | None = None
    offline: bool = False

    def check(self) -> None:
        """Refuse what is not known.

        Raises:
            InputError: An option is out of range.
        """
        for name, given, known in (
            ("capture", tuple(self.captures), CAPTURE_MODES),
            ("feature site", (self.feature_site,), FEATURE_SITES),
            ("precision", (self.precision or "fp32",), tuple(PRECISIONS)),
            ("parity", (self.parity,), _PARITIES),
        ):
            unknown = [one_line(value) for value in given if value not in known]
            if unknown or not given:
                raise InputError(
                    f"{name} {', '.join(unknown) or 'nothing'} is not known, expected some of "
                    f"{', '.join(known)}"
                )
        if self.size_level is not None and not 8 <= self.size_level <= 8192:
            raise InputError(
                f"size level is {self.size_level}, expected pixels from 8 to 8192, such as 512"
            )
        if self.size_level is not None and self.sizes:
            raise InputError("a size level and fixed sizes exclude each other: give one of them")
        if self.template is not None and self.template.count("{expression}") != 1:
            raise InputError(
                f"template is '{one_line(self.template)}', expected text with {{expression}} in "
                "it once"
            )


@dataclass(frozen=True)
class ExportReport:
    """What was written and how near it is to the PyTorch model.

    Attributes:
        path: the bundle.
        size_bytes: all of its files.
        parity: largest errors by graph and output.
        plan: what was known before.
    """

    path: Path
    size_bytes: int
    parity: Checks
    plan: ExportPlan

    def parity_table(self) -> str:
        """One line per graph output: error, limit."""
        rows = [
            f"{graph:<24} {name:<26} {check.error:9.2e}  (limit {check.limit:.0e})"
            for graph, checks in self.parity.items()
            for name, check in checks.items()
        ]
        return "\n".join(rows)


@dataclass(frozen=True)
class _Export:
    """One export: everything that its steps share."""

    checkpoint: Checkpoint
    model: OpenModel
    options: ExportOptions
    precision: Precision
    parts: dict[str, Part]
    plan: ExportPlan

    @property
    def captures(self) -> tuple[str, ...]:
        """Capture modes, each once."""
        return tuple(dict.fromkeys(self.options.captures))

    @property
    def sizes(self) -> list[Size]:
        """Fixed sizes, or the one that is free."""
        return list(self.model.spec.geometry.sizes) or [None]


def plan_export(model: str, output: Path, options: ExportOptions | None = None) -> ExportPlan:
    """Say what an export would read, write and need; nothing is written.

    Args and errors as those of `export_bundle`; of a hub only small files are fetched.
    """
    return _open(model, output, options or ExportOptions(), weights=False).plan


def export_bundle(
    model: str,
    output: Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model as a bundle.

    Graphs are traced without weights, and weights go from the checkpoint's files into the bundle
    tensor by tensor: the memory needed is that of a few tensors.

    Args:
        model: "mini", a published model's short name, a folder, a single file, or a hub id.
        output: the folder to make; it must not exist, or be empty.
        options: how.
        progress: told of stages and bytes.

    Raises:
        CheckpointError: The model cannot be found or read.
        UnsupportedModelError: The method cannot work with it.
        ParityError: A graph does not agree with PyTorch; nothing is left behind.
        OutputError: The place cannot be written, or has no room.
        InputError: An option is out of range.
    """
    progress = progress or Progress()
    check_output(output)
    options = options or ExportOptions()
    export = _open(model, output, options, weights=False)
    export.plan.check(output)
    if not export.checkpoint.weights:
        progress.stage(f"fetching {export.checkpoint.source}")
        options = replace(options, revision=export.checkpoint.revision)
        export = _open(model, output, options, weights=True)
    try:
        with workplace(output) as work:
            parity = _write(export, work, progress)
            Bundle.open(work, verify=False)  # hashed as they were written
    finally:
        progress.close()
    size = sum(path.stat().st_size for path in output.iterdir())
    return ExportReport(output, size, parity, export.plan)


def _open(model: str, output: Path, options: ExportOptions, *, weights: bool) -> _Export:
    options.check()
    checkpoint = find_checkpoint(
        model, revision=options.revision, offline=options.offline, weights=weights
    )
    opened = _open_model(checkpoint)
    if options.size_level is not None:
        opened.spec = opened.spec.at_level(options.size_level)
    if options.sizes:
        _check_sizes(options.sizes, opened.spec.geometry.multiple_px)
        opened.spec = opened.spec.at_sizes(options.sizes)
    if options.template is not None:
        opened.spec = opened.spec.with_template(options.template)
    precision = PRECISIONS[options.precision or opened.default_precision]
    parts = {
        "text_encoder": opened.text_encoder(precision),
        "vae_encoder": opened.vae_encoder(precision),
        "transformer": opened.transformer(precision),
    }
    plan = make_plan(
        opened,
        tuple(parts.values()),
        source=checkpoint.source,
        precision=precision,
        captures=tuple(dict.fromkeys(options.captures)),
        parity=options.parity,
        output=output,
    )
    return _Export(checkpoint, opened, options, precision, parts, plan)


def _check_sizes(sizes: Sequence[tuple[int, int]], multiple: int) -> None:
    for width, height in sizes:
        if min(width, height) < multiple or width % multiple or height % multiple:
            raise InputError(
                f"size {width}x{height} cannot be exported, expected both sides a multiple of "
                f"{multiple} for this model"
            )


def _open_model(checkpoint: Checkpoint) -> OpenModel:
    pipeline = pipeline_name(checkpoint)
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family.open(checkpoint)
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UnsupportedModelError(
        f"{checkpoint.folder.name} is a {one_line(pipeline, limit=80)}, expected one of: {known}. "
        "The method needs joint attention over prompt, noisy and clean image tokens"
    )


def _write(export: _Export, work: Path, progress: Progress) -> Checks:
    """Write the whole bundle into `work`, each graph compared with PyTorch."""
    spec = export.model.spec
    (work / spec.prompt.tokenizer).write_text(export.model.tokenizer_json, encoding="utf-8")
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(
        (spec.noise_rows, spec.latent_channels), dtype=np.float32
    )
    noise.astype("<f4").tofile(work / "noise.f32")
    progress.start(sum(part.write_bytes for part in export.plan.parts))
    writer = _Writer(export, work, noise, progress)
    with _revision(export.checkpoint) as revision:
        writer.text_encoder()
        writer.vae_encoder()
        writer.transformer()
        found = revision()
    write_manifest(
        work,
        spec,
        export.checkpoint,
        graphs=writer.graphs,
        weights=writer.weights,
        revision=found,
        precision=export.precision,
        captures=export.captures,
        feature_site=export.options.feature_site,
        parity=writer.parity,
        parity_depth=export.plan.parity,
    )
    return writer.parity


@contextmanager
def _revision(checkpoint: Checkpoint) -> Iterator[Callable[[], str]]:
    """Find which version of the checkpoint this is, while tracing keeps one core busy."""
    if checkpoint.revision:
        yield lambda: checkpoint.revision
        return
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(content_digest, checkpoint.folder, stop)
        try:
            yield digest.result
        finally:
            stop.set()


class _Writer:
    """Writes graphs and weights, one part after the other, and compares each."""

    def __init__(
        self, export: _Export, work: Path, noise: np.ndarray[Any, Any], progress: Progress
    ) -> None:
        self.export, self.work, self.noise, self.progress = export, work, noise, progress
        self.graphs: dict[str, str] = {}
        self.weights: dict[str, dict[str, Any]] = {}
        self.parity: Checks = {}
        lean = export.plan.parity == "blocks"
        self.models = list(export.model.samples_of_blocks()) if lean else [export.model]
        self.lean = lean

    def text_encoder(self) -> None:
        """Write and compare the text encoder."""
        export, name = self.export, "text_encoder"
        with self._file(name) as file:
            self._say("the text encoder")
            graph = trace_text(export.parts[name], export.model.spec)
            self._save(graph, export.parts[name].rules, file, name)
            model, compared = self.models[0], f"{name}.onnx"
            if self.lean:
                part = model.text_encoder(export.precision)
                compared = self._sample(trace_text(part, model.spec), part.rules, file)
        self.parity[name] = self._gate(model).text_encoder(compared)
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
        self.parity[name] = self._gate(export.model).vae_encoder(files)
        self._done(name, file)

    def transformer(self) -> None:
        """Write and compare the transformer, with every capture mode at every size."""
        export = self.export
        with self._file("transformer") as file:
            for size in export.sizes:
                for mode in export.captures:
                    self._say(f"the transformer, capture {mode}", size)
                    graph, rules = self._captured(
                        export.model, export.parts["transformer"], mode, size
                    )
                    name = graph_name(f"transformer.{mode}", size)
                    self._save(graph, rules, file, name)
            for model in self.models:
                self._compare(model, file)
        self._done("transformer", file)

    def _compare(self, model: OpenModel, file: WeightFile) -> None:
        """Compare one model's graphs: the bundle's own, or those of a few blocks."""
        export = self.export
        files: dict[Size, dict[str, str]] = {}
        part = model.transformer(export.precision) if self.lean else None
        for size in export.sizes[-1:] if self.lean else export.sizes:
            files[size] = {}
            for mode in export.captures:
                if part is None:
                    files[size][mode] = self.graphs[graph_name(f"transformer.{mode}", size)]
                else:
                    graph, rules = self._captured(model, part, mode, size)
                    files[size][mode] = self._sample(graph, rules, file, mode)
        checked = self._gate(model).transformer(files, self.noise, export.options.feature_site)
        for name, found in checked.items():
            merged = self.parity.setdefault(name, {})
            for output, check in found.items():
                if output not in merged or check.error > merged[output].error:
                    merged[output] = check
        if self.lean:
            for path in self.work.glob("sample.*"):
                path.unlink()

    def _captured(
        self, model: OpenModel, part: Part, mode: str, size: Size
    ) -> tuple[ir.Model, dict[str, WeightRule]]:
        options = self.export.options
        capture = CaptureOptions(mode, options.feature_site, options.token_attention)
        graph = trace_transformer(part, model.spec, capture, self.export.precision, size)
        return graph, {f"dit.{name}": rule for name, rule in part.rules.items()}

    def _gate(self, model: OpenModel) -> Gate:
        self.progress.stage("comparing with PyTorch")
        return Gate(model, self.work, self.export.precision, lean=self.lean)

    def _say(self, what: str, size: Size = None) -> None:
        self.progress.stage(f"tracing {what}" + (f", {size[0]}x{size[1]}" if size else ""))

    def _file(self, name: str) -> WeightFile:
        return WeightFile(self.work / f"{name}.weights", self.progress.advance)

    def _save(
        self, graph: ir.Model, rules: dict[str, WeightRule], file: WeightFile, name: str
    ) -> None:
        store_weights(graph, rules, file)
        file.flush()
        self.graphs[name] = f"{name.replace('@', '.')}.onnx"
        ir.save(graph, self.work / self.graphs[name])

    def _sample(
        self, graph: ir.Model, rules: dict[str, WeightRule], file: WeightFile, mode: str = "text"
    ) -> str:
        """Save a graph of a few blocks on the weights that are written already."""
        before = file.size
        store_weights(graph, rules, file)
        file.flush()
        if file.size > before:
            raise UnsupportedModelError(
                f"{file.path.name}: a graph of a few blocks asks for weights that the whole has "
                "not: this is a fault in the exporter"
            )
        name = f"sample.{mode}.onnx"
        ir.save(graph, self.work / name)
        return name

    def _done(self, name: str, file: WeightFile) -> None:
        for path in self.work.glob("sample.*"):
            path.unlink()
        self.weights[f"{name}.weights"] = {"sha256": file.sha256, "size": file.size}
