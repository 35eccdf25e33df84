"""A bundle as a model repository of Triton Inference Server (docs/triton.md)."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from rism.export.output_folder import atomic_folder, check_output
from rism.export.triton.config import chain_config, model_config
from rism.export.triton.graphs import NoiseFile, join_requests, transformer_inputs
from rism.export.triton.models import FREE, Model, Tensor, chains, models_of
from rism.export.triton.segmenter import write_segmenter
from rism.export.triton.serving_options import TritonOptions, TritonReport
from rism.runtime.bundle.engine_spec import EngineVariant
from rism.runtime.bundle.reader import Bundle
from rism.runtime.engines.providers import check_precision, find_provider
from rism.runtime.errors import BundleError, InputError, OutputError, one_line

_GRAPH_ROOM = 64 * 2**20


def export_triton(bundle: Bundle, output: Path, options: TritonOptions) -> TritonReport:
    """Write a model repository: a model for each graph, and an ensemble that chains them.

    Args:
        bundle: an open bundle.
        output: the repository; must not exist, or be empty. It appears whole or not at all.
        options: what to write.

    Raises:
        InputError: an option cannot be used, or asks for what the bundle has not.
        ProviderError: the bundle cannot run on the device asked for.
        BundleError: a graph is not as the manifest says.
        OutputError: the place is taken, full or cannot be written.
    """
    options.check()
    manifest = bundle.manifest
    capture, engine = _capture(bundle, options.capture), _engine(bundle, options.engine)
    if options.serving.device == "cpu":
        if engine is not None:
            raise InputError("engines run on GPUs, but the device is cpu: leave out one of both")
        for graph in manifest.graphs:
            check_precision(manifest.precision_of(graph), find_provider("cpu"), "--device cpu")
    check_output(output)
    found = chains(
        manifest, capture, max_batch=options.max_batch, engine=engine, prefix=options.prefix
    )
    tau = manifest.method.tau if options.tau is None else options.tau
    models = tuple(models_of(found))
    with atomic_folder(output) as work:
        writer = _Writer(bundle, work, options, tau)
        writer.expect_room(models, output)
        for chain in found:
            (work / chain.name / "1").mkdir(parents=True)
            (work / chain.name / "config.pbtxt").write_text(chain_config(chain), encoding="utf-8")
        for model in models:
            transformer = next(
                (c.transformer for c in found if c.joint is model or c.transformer is model), None
            )
            writer.model(model, transformer)
        segmenter = f"{options.prefix}rism" if options.segmenter else None
        if segmenter is not None:
            write_segmenter(
                work / segmenter, bundle, found, capture=capture, tau=tau, options=options
            )
    return TritonReport(output, tuple(found), models, segmenter, writer.copied_bytes)


class _Writer:
    """Writes models into a folder."""

    def __init__(self, bundle: Bundle, work: Path, options: TritonOptions, tau: float) -> None:
        self.bundle, self.work, self.options, self.tau = bundle, work, options, tau
        self.noise = NoiseFile("noise.f32", bundle.manifest.noise.shape)
        self.copied_bytes = 0

    def expect_room(self, models: tuple[Model, ...], output: Path) -> None:
        """Refuse to begin what does not fit on the disk."""
        if self.options.link:
            return
        files = [name for model in models for name in self._files(model)]
        needed = sum(self.bundle.manifest.files[name].size for name in files) + _GRAPH_ROOM
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise OutputError(
                f"{output} needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free: "
                "choose a place on another disk with -o, or --link on the bundle's own disk"
            )

    def model(self, model: Model, transformer: Model | None) -> None:
        """Write one model's folder.

        Args:
            model: to write.
            transformer: the chain's, where this is that or the joint before it.
        """
        version = self.work / model.name / "1"
        version.mkdir(parents=True)
        made = None if transformer is None else self._made(model, transformer, version)
        if made is not None:
            ir.save(made, version / "model.onnx")
        if model.platform == "onnxruntime_onnx":
            model = _as_in_file(model, _read(self.bundle, model) if made is None else made)
        text = model_config(model, self.options.serving)
        (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
        name = "model.plan" if model.platform == "tensorrt_plan" else "model.onnx"
        for file in self._files(model):
            if file != model.file:
                self._put(self.bundle.file(file), version / file)
            elif made is None:
                self._put(self.bundle.file(file), version / name)

    def _made(self, model: Model, transformer: Model, version: Path) -> ir.Model | None:
        """Make a graph that is not as the bundle has it, or None; put the noise where it is used.

        The transformer has it inside where it joins requests, otherwise it gets it.
        """
        manifest, joins = self.bundle.manifest, transformer.max_batch > 0
        if model is transformer and not joins:
            return None
        if joins == (model is transformer):
            shutil.copyfile(self.bundle.file(manifest.noise.file), version / self.noise.name)
        if model is transformer:
            made, spec = _read(self.bundle, model), manifest.graphs[model.graph]
            join_requests(made, spec, model, noise=self.noise, tau=self.tau)
            return made
        size = manifest.geometry.token_px
        return transformer_inputs(model, token_px=size, grid=joins, noise=self.noise, tau=self.tau)

    def _files(self, model: Model) -> Iterator[str]:
        """Yield the bundle's files that a model is made of."""
        if model.file is None:
            return
        yield model.file
        if model.platform == "onnxruntime_onnx":
            yield from sorted(_weights(self.bundle, model))

    def _put(self, source: Path, target: Path) -> None:
        """Copy a file, or link to it."""
        if target.exists():
            raise BundleError(
                f"'{one_line(source.name)}' has the name of another file of its model in a "
                "repository, expected its own: export the bundle again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.options.link:
            shutil.copyfile(source, target)
            self.copied_bytes += target.stat().st_size
            return
        try:
            os.link(source, target)
        except OSError as error:
            raise OutputError(
                f"{source.name} cannot be linked to ({error.strerror or error}): choose a place on "
                "the bundle's own disk with -o, or leave out --link"
            ) from None


def _capture(bundle: Bundle, asked: str | None) -> str:
    have = bundle.manifest.captures
    if asked is None:
        return "scores" if "scores" in have else bundle.manifest.default_capture
    if asked not in have:
        raise InputError(
            f"capture is '{one_line(asked)}', this bundle has {', '.join(have)}: export again "
            f"with --capture {one_line(asked)}"
        )
    return asked


def _engine(bundle: Bundle, asked: str | None) -> EngineVariant | None:
    """Find an engine that the server can load."""
    if asked is None:
        return None
    have = {variant.name: variant for variant in bundle.manifest.engines}
    if asked not in have:
        raise InputError(
            f"engine is '{one_line(asked, limit=80)}', this bundle has "
            f"{', '.join(have) or 'none'}: build one with rism build {bundle.path} "
            "--target tensorrt"
        )
    variant = have[asked]
    if variant.target != "tensorrt":
        raise InputError(
            f"engine '{asked}' is of {one_line(variant.target)}, expected tensorrt, which is all "
            f"that Triton's backend loads: rism build {bundle.path} --target tensorrt"
        )
    if variant.stripped:
        raise InputError(
            f"engine '{asked}' has no weights, expected whole plans, which Triton loads as they "
            f"are: rism build {bundle.path} --target tensorrt, without --strip-weights"
        )
    if variant.bound:
        raise InputError(
            f"engine '{asked}' takes its weights as inputs, expected whole plans, which Triton "
            f"loads as they are: rism build {bundle.path} --target tensorrt, without --bind-weights"
        )
    if not variant.platform.startswith("linux-"):
        raise InputError(
            f"engine '{asked}' is for {one_line(variant.platform)}, expected linux, where Triton "
            f"runs: rism build {bundle.path} --target tensorrt, there"
        )
    return variant


def _as_in_file(model: Model, graph: ir.Model) -> Model:
    """Take sizes that the file has and the manifest leaves open: a server compares the two.

    Raises:
        BundleError: a tensor is not there, or is of other dimensions.
    """
    given = {v.name: v for v in (*graph.graph.inputs, *graph.graph.outputs)}

    def known(tensor: Tensor) -> Tensor:
        value = given.get(tensor.name)
        shape = None if value is None else value.shape
        sides = [] if shape is None else [n if isinstance(n, int) else FREE for n in shape]
        joins = model.max_batch > 0 and sides[:1] != [FREE]
        if len(sides) != len(tensor.shape) or joins:
            raise BundleError(
                f"'{one_line(model.file)}': '{one_line(tensor.name, limit=60)}' is not of the "
                f"dimensions {one_line(list(tensor.shape), limit=60)}, expected those of the "
                "manifest: export the bundle again"
            )
        merged = (
            side if own == FREE else own for own, side in zip(tensor.shape, sides, strict=True)
        )
        return replace(tensor, shape=tuple(merged))

    return replace(
        model,
        inputs={name: known(tensor) for name, tensor in model.inputs.items()},
        outputs={name: known(tensor) for name, tensor in model.outputs.items()},
    )


def _read(bundle: Bundle, model: Model) -> ir.Model:
    """Read a graph, without its weights.

    Raises:
        BundleError: the file is not a graph.
    """
    assert model.file is not None
    try:
        return ir.load(bundle.file(model.file))
    except Exception as error:  # what protobuf and onnx_ir raise has no base in common
        raise BundleError(
            f"'{one_line(model.file)}' is not a graph that can be read "
            f"({one_line(error, limit=120)}): export the bundle again"
        ) from None


def _weights(bundle: Bundle, model: Model) -> set[str]:
    """Return the files that a graph's weights lie in.

    Raises:
        BundleError: one of them is not listed in the manifest.
    """
    found = set()
    for graph in _read(bundle, model).graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                found.add(Path(value.const_value.location).as_posix())
    for name in found:
        if name not in bundle.manifest.files:
            raise BundleError(
                f"'{one_line(model.file)}' has weights in '{one_line(name, limit=80)}', which the "
                "manifest does not list: export the bundle again"
            )
    return found
