"""Writing a bundle: open, plan, trace, stream, compare, rename (docs/bundle.md)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import torch

from rism.calibration.activation_moments import load_moments
from rism.calibration.kept_layers import kept_layers
from rism.export.bundle_writer import BundleWriter, Export, open_parts
from rism.export.capture_blocks import choose_blocks, last_block
from rism.export.checkpoint.locate import Checkpoint, content_digest
from rism.export.checkpoint.meta_modules import Part
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.families.find import family_of, find_checkpoint
from rism.export.manifest_writer import write_manifest
from rism.export.options import ExportOptions, ExportReport
from rism.export.output_folder import atomic_folder, check_output
from rism.export.parity.test_vectors import store_vectors
from rism.export.plan.checkpoint_plan import ExportPlan, make_plan
from rism.export.precision import Precision, find_precision
from rism.export.progress import Progress
from rism.export.quantisation.block_rounding import BITS
from rism.export.spec import ModelSpec, OpenModel
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import InputError, one_line

_NOISE_SEED = 0


def plan_export(model: str, output: Path, options: ExportOptions | None = None) -> ExportPlan:
    """Return what an export would read, write and need; nothing is written.

    Arguments and errors are those of `export_bundle`. Only small files are fetched from the hub.
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
        options: the options; None for the defaults.
        progress: receives the steps and the bytes written; None for no report.

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
        progress.stage(f"download {export.checkpoint.source}")
        options = replace(options, revision=export.checkpoint.revision)
        export = _open(model, output, options, weights=True)
    try:
        with atomic_folder(output) as work:
            writer = _write(export, work, progress)
            if export.plan.parity == "full":
                progress.stage("make test vectors")
                store_vectors(work)
            Bundle.open(work, verify=False)  # hashed as they were written
    finally:
        progress.close()
    size = sum(path.stat().st_size for path in output.iterdir())
    return ExportReport(output, size, writer.parity, export.plan, writer.rounded)


def _open(model: str, output: Path, options: ExportOptions, *, weights: bool) -> Export:
    options.check()
    checkpoint = find_checkpoint(
        model, revision=options.revision, offline=options.offline, weights=weights
    )
    if options.vision_id is not None:
        checkpoint = replace(checkpoint, settings={"vision_id": options.vision_id})
    opened = open_model(checkpoint)
    if options.size_level is not None:
        opened.spec = opened.spec.at_level(options.size_level)
    if options.sizes:
        _check_sizes(options.sizes, opened.spec.geometry.multiple_px)
        opened.spec = opened.spec.at_sizes(options.sizes)
    if options.template is not None:
        opened.spec = opened.spec.with_template(options.template)
    opened = _read_less(opened, options)
    precision, text = _precisions(opened, options)
    parts = open_parts(opened, precision, text)
    _check_rounded(parts, options)
    if options.activations is not None:
        precision = _weighed(precision, parts["transformer"], options.activations)
        parts["transformer"] = opened.transformer(precision)
    plan = make_plan(opened, parts, checkpoint, (precision, text), options, output)
    return Export(checkpoint, opened, options, precision, text, parts, plan)


def _precisions(opened: OpenModel, options: ExportOptions) -> tuple[Precision, Precision]:
    """Return what the transformer computes in, and what the text side does."""

    def find(name: str) -> Precision:
        return find_precision(name, block=options.block_size, keep=options.keep)

    precision = find(options.precision or opened.default_precision)
    if options.text_precision is None:
        return precision, precision.in_floats
    text = find(options.text_precision)
    if precision.wide_on_cpu and text.compute == precision.compute:
        text = replace(text, wide_on_cpu=True)  # or one graph alone would be slow on a CPU
    return precision, text


def _check_rounded(parts: Mapping[str, Part], options: ExportOptions) -> None:
    """Refuse patterns that fit no layer, and a model without a layer that can be rounded."""
    names = [name for part in parts.values() for name in (*part.kept, *part.rounded)]
    kept_layers([name.removesuffix(".weight") for name in names], options.keep)
    for asked, part in (("precision", "transformer"), ("text_precision", "text_encoder")):
        name = getattr(options, asked)
        if name in BITS and not parts[part].rounded:
            raise InputError(
                f"no layer of the {part.replace('_', ' ')} is left to be rounded to {name}: "
                "expected fewer --keep, or rows that a block of 16 divides"
            )


def _weighed(precision: Precision, part: Part, file: Path) -> Precision:
    """Weigh the rounding of a transformer's weights by activations that were measured.

    Raises:
        InputError: the file is none, or of another model.
    """
    assert precision.weights is not None, "checked with the options"
    moments, found = load_moments(file), dict[Hashable, torch.Tensor]()
    for weight in part.rounded:
        own, rule = moments.get(weight.removesuffix(".weight")), part.rules[weight]
        places = None if own is None else (own.shape[0] * own.shape[1],)
        if own is None or places != tuple(rule.shape[1:]) or not isinstance(rule, StoredTensor):
            raise InputError(
                f"{one_line(file.name, limit=60)} has no activations for "
                f"'{weight.removesuffix('.weight')}', expected them for each layer that is "
                "rounded: rism calibrate --activations on a bundle of this model in floats"
            )
        found[rule] = torch.from_numpy(own)
    return replace(precision, weights=replace(precision.weights, moments=found))


def _read_less(opened: OpenModel, options: ExportOptions) -> OpenModel:
    """Apply the choice of blocks and of noisy tokens; what follows the last block read goes."""
    blocks, noisy_grid = options.reading
    spec = replace(opened.spec, noisy_grid=noisy_grid)
    chosen = choose_blocks(
        blocks,
        double=spec.double_blocks,
        single=spec.single_blocks,
        feature_block=spec.feature_block,
    )
    if len(chosen) < spec.blocks:
        spec = replace(spec, capture_blocks=chosen)
        # Features of a block's output need the whole block: one more is begun.
        features = spec.feature_block + (options.feature_site == "block")
        last = last_block(chosen, double=spec.double_blocks, feature_block=features)
        if last < spec.blocks - 1:
            opened = opened.first_blocks(last + 1)
    opened.spec = spec
    return opened


def _check_sizes(sizes: Sequence[tuple[int, int]], multiple: int) -> None:
    for width, height in sizes:
        if min(width, height) < multiple or width % multiple or height % multiple:
            raise InputError(
                f"size {width}x{height} cannot be exported, expected both sides a multiple of "
                f"{multiple} for this model"
            )


def open_model(checkpoint: Checkpoint) -> OpenModel:
    """Open a checkpoint by the family that it is of; only headers and small files are read.

    Raises:
        CheckpointError, UnsupportedModelError: as `export_bundle` does.
    """
    return family_of(checkpoint).open(checkpoint)


def fixed_noise(spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Draw the noise that every bundle of a model ships: (rows, C), the same on every machine."""
    return np.random.default_rng(_NOISE_SEED).standard_normal(
        (spec.noise_rows, spec.latent_channels), dtype=np.float32
    )


def _write(export: Export, work: Path, progress: Progress) -> BundleWriter:
    """Write the whole bundle into `work`, each graph compared with PyTorch."""
    spec = export.model.spec
    (work / spec.prompt.tokenizer).write_text(export.model.tokenizer_json, encoding="utf-8")
    noise = fixed_noise(spec)
    noise.astype("<f4").tofile(work / "noise.f32")
    writer = BundleWriter(export, work, noise, progress)
    vectors = export.plan.parity == "full"
    progress.start(writer.steps + vectors, sum(part.write_bytes for part in export.plan.parts))
    with _revision(export.checkpoint) as revision:
        if "vision_encoder" in export.parts:
            writer.vision_encoder()
        writer.text_encoder()
        if "modulation" in export.parts:
            writer.modulation()
        writer.vae_encoder()
        writer.transformer()
        found = revision()
    write_manifest(writer, found)
    return writer


@contextmanager
def _revision(checkpoint: Checkpoint) -> Iterator[Callable[[], str]]:
    """Find which version of the checkpoint this is, while tracing keeps one core busy."""
    if checkpoint.revision:
        yield lambda: checkpoint.revision
        return
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(content_digest, checkpoint.folders, stop)
        try:
            yield digest.result
        finally:
            stop.set()
