"""Building engines of a bundle's graphs one after another, and adding them to the bundle."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rism import __version__
from rism.export.engines.build_options import WEIGHT_FLAGS, BuildOptions
from rism.export.engines.forms import bring_into_form, narrow_weights, refuse_narrow
from rism.export.engines.listing import LayerCheck, unacceptable
from rism.export.engines.process import BuildJob, BuiltEngine, build_graph
from rism.export.engines.report import BuildReport
from rism.export.engines.targets import (
    BuildTarget,
    check_gpus,
    check_weights,
    find_target,
    form_for,
    gpus_here,
    installed_version,
)
from rism.export.engines.variant import check_here, files_of
from rism.export.engines.weights import weights_to_inputs
from rism.export.errors import BuildError
from rism.export.progress import Progress
from rism.runtime.atomic_write import link_or_copy
from rism.runtime.bundle.engine_spec import ShapeRange
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.bundle.manifest_file import read_manifest_json
from rism.runtime.bundle.reader import Bundle
from rism.runtime.bundle.update import expect_own_bundle, update_bundle
from rism.runtime.engines.shape_profiles import profile, ranges
from rism.runtime.engines.variants import this_platform
from rism.runtime.errors import BundleError, InputError, OutputError, failures_as, one_line
from rism.runtime.names import ENGINES_ALONE, PRECISION_OF_TYPE

# FP8 weights for engines that take them as inputs: one file for all capture modes.
_STORED = "transformer.e4m3.weights"
_TENSORS = ("inputs", "constants", "outputs")


def build_engines(
    path: Path, options: BuildOptions | None = None, *, progress: Progress | None = None
) -> BuildReport:
    """Build engines of a bundle's graphs and add them to the bundle.

    Each graph is built in a process of its own. The engine's layers, as the builder lists them,
    are stored beside the plan and checked: attention is fused, products use the precision that was
    asked for, and no tensor is tokens by tokens unless the capture mode needs one.

    Args:
        path: the bundle's folder. A variant of the same name in it is kept if it was built as
            asked by the same library, or else replaced.
        options: what to build.
        progress: shows which graph is being built.

    Raises:
        BundleError: the folder is no bundle, or damaged.
        InputError: the target, a GPU, a precision or shapes cannot be served.
        ProviderError: the library is not installed, or needs a GPU that is not there.
        BuildError: the library refused a graph, or crashed; or an engine is not what was asked
            for. The bundle stays as it was; an engine that failed the self-test is removed.
        OutputError: the bundle cannot be written to, or is a built-in one.
    """
    options, progress = options or BuildOptions(), progress or Progress()
    options.check()
    target = find_target(options.target)
    bundle = Bundle.open(path)
    expect_own_bundle(bundle.path)
    build = _plan_build(bundle, target, options)
    try:
        with _folder_beside(bundle.path) as work:
            return build.run(Path(work), progress)
    finally:
        progress.close()


@dataclass
class _Build:
    """What all graphs of one build share, and the files and manifest entries that they leave."""

    bundle: Bundle
    target: BuildTarget
    library: str
    gpus: tuple[str, ...]
    precision: str
    own: str
    name: str
    graphs: tuple[str, ...]
    scales: Path | None
    options: BuildOptions
    files: dict[str, Path] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, work: Path, progress: Progress) -> BuildReport:
        manifest = self.bundle.manifest
        known = ranges(
            manifest.geometry,
            manifest.prompt,
            manifest.noise.shape[0],
            shapes=self.options.shapes,
            batch=self.options.batch,
        )
        profiles = {g: profile(manifest.graphs[g].inputs, known) for g in self.graphs}
        request = self._request(profiles)
        engines = read_manifest_json(self.bundle.path).get("engines", [])
        there = [each for each in engines if each["name"] == self.name]
        keep = not self.options.force and any(each.get("request") == request for each in there)
        reports = []
        if not keep:
            for graph, shapes in profiles.items():
                progress.stage(f"building {graph} ({self.target.name}, {self.precision})")
                reports.append(self._graph(graph, shapes, work))
            self._amend(request)
        progress.stage(f"testing {self.name}")
        return BuildReport(
            self.name,
            self.target.name,
            self.library,
            self.gpus,
            self.precision,
            tuple(reports),
            check_here(self.bundle.path, self.name, unchecked=self.options.unchecked),
            "kept" if keep else "replaced" if there else "",
        )

    def _request(self, profiles: Mapping[str, Mapping[str, ShapeRange]]) -> str:
        """Hash all that decides what is built: variants of equal hashes are the same."""
        scales = b"" if self.scales is None else self.scales.read_bytes()
        parts = {
            "rism": __version__,
            "library": [self.target.name, self.library, this_platform(), *self.gpus],
            "form": [self.precision, self.options.weights, self.options.unchecked],
            "scales": hashlib.sha256(scales).hexdigest(),
            "graphs": {
                graph: [
                    self.bundle.manifest.files[self.bundle.manifest.graphs[graph].file].sha256,
                    {name: asdict(shape) for name, shape in shapes.items()},
                ]
                for graph, shapes in profiles.items()
            },
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _graph(self, graph: str, shapes: dict[str, ShapeRange], work: Path) -> BuiltEngine:
        spec = self.bundle.manifest.graphs[graph]
        source = self.bundle.file(spec.file)
        damaged = failures_as(
            lambda why: BundleError(
                f"'{spec.file}' is not a graph that can be read ({why}): export the bundle again"
            )
        )
        with damaged:
            model = ir.load(source)
        form = form_for(self.target.name, self.library)
        attentions = bring_into_form(model, form)
        own, quantised = self._own(graph), 0
        precision = self.precision if graph.startswith("transformer.") else own
        if precision != own:
            quantised = self._quantise(model, work)
        refuse_narrow(model, form.opset)
        folder = f"engines/{self.name}"
        entry: dict[str, Any] = {"file": f"{folder}/{graph}.plan"}
        if self.options.weights == "bound":
            bound = weights_to_inputs(model, {_STORED: folder})
            text = json.dumps({name: asdict(weight) for name, weight in bound.items()}, indent=1)
            self._add(entry, "weights", f"{folder}/{graph}.weights.json", text, work)
        if self.options.weights == "stripped":
            entry["refit"] = spec.file
            if quantised or attentions.written_out:
                # Beside the weights that it names: a graph may not name files of other folders.
                entry["refit"] = f"{graph}.{self.name}.refit.onnx"
                self.files[entry["refit"]] = work / f"{graph}.refit"
                ir.save(model, self.files[entry["refit"]])
        job = BuildJob(
            graph=graph,
            target=self.target,
            gpus=self.gpus,
            precision=own if precision == "nvfp4a16" else precision,
            weights=self.options.weights,
            inputs=spec.inputs,
            profile=shapes,
            weights_beside=self._beside(model, source, work),
            attentions=attentions,
            quantised=quantised,
            narrow=narrow_weights(model),
        )
        plan = work / f"{graph}.plan"
        built = build_graph(model, job, plan, timeout_s=self.options.timeout_s)
        self.library = built.version
        self._refuse(graph, built.checks)
        self._add(entry, "layers", f"{folder}/{graph}.layers.json", _listing(built), work)
        self.files[entry["file"]] = plan
        entry["shapes"] = {
            logical: {"min": list(shape.min), "opt": list(shape.opt), "max": list(shape.max)}
            for logical, shape in shapes.items()
        }
        self.entries[graph] = entry
        return built

    def _own(self, graph: str) -> str:
        """What a graph computes in by itself."""
        return PRECISION_OF_TYPE[self.bundle.manifest.precision_of(graph).compute]

    def _add(self, entry: dict[str, Any], key: str, name: str, text: str, work: Path) -> None:
        """Write a small file that goes with a plan."""
        entry[key] = name
        self.files[name] = work / name.rpartition("/")[2]
        self.files[name].write_text(text + "\n", encoding="utf-8")

    def _beside(self, model: ir.Model, source: Path, work: Path) -> Path:
        """Return a path in the one folder that has all weights of a graph."""
        stored = (each.const_value for each in model.graph.initializers.values())
        files = {Path(each.path) for each in stored if isinstance(each, ir.ExternalTensor)}
        if all(file.parent == source.parent for file in files) or self.options.weights == "bound":
            return source
        for file in files:
            if not (there := work / file.name).exists():
                link_or_copy(file, there)
        return work / source.name

    def _quantise(self, model: ir.Model, work: Path) -> int:
        from rism.calibration import load_scales, quantise
        from rism.calibration.nvfp4_graph import quantise_nvfp4

        scales = None if self.scales is None else load_scales(self.scales, self.bundle)
        if self.precision != "fp8":
            (part := work / "transformer.e2m1.weights").unlink(missing_ok=True)
            return quantise_nvfp4(model, part, scales)
        assert scales is not None
        if self.options.weights != "bound":
            return len(quantise(model, scales))
        # Weights that are inputs are in FP8 in a file of their own.
        part = work / _STORED
        part.unlink(missing_ok=True)
        self.files[f"engines/{self.name}/{_STORED}"] = part
        return len(quantise(model, scales, weights="stored", file=part))

    def _refuse(self, graph: str, checks: Sequence[LayerCheck]) -> None:
        wrong = unacceptable(graph, checks)
        if wrong and not self.options.unchecked:
            said = "; ".join(f"{check.question}: no ({check.detail})" for check in wrong)
            raise BuildError(
                f"{graph}: {self.target.name} {self.library} built an engine that is not what was "
                f"asked for ({one_line(said, limit=400)}): update the library, or keep it with "
                "--unchecked"
            )

    def _amend(self, request: str) -> None:
        variant: dict[str, Any] = {
            "name": self.name,
            "target": self.target.name,
            "version": self.library,
            "platform": this_platform(),
            "compute_capabilities": list(self.gpus),
            "precision": self.precision,
            "stripped": self.options.weights == "stripped",
            "streamed": self.options.weights == "streamed",
            "request": request,
            "graphs": self.entries,
        }

        def change(manifest: dict[str, Any]) -> None:
            others = [each for each in manifest.get("engines", []) if each["name"] != self.name]
            manifest["engines"] = [*others, variant]

        old = files_of(self.bundle.manifest, self.name)
        update_bundle(self.bundle.path, change, files=self.files, remove=old)


def _plan_build(bundle: Bundle, target: BuildTarget, options: BuildOptions) -> _Build:
    """Refuse what cannot be built, before anything is built."""
    manifest = bundle.manifest
    own = PRECISION_OF_TYPE.get(manifest.precision.compute)
    if own is None:
        raise InputError(
            f"bundle '{bundle.path}' computes in {one_line(manifest.precision.compute)}, expected "
            f"{', '.join(PRECISION_OF_TYPE)}: export it again"
        )
    precision = options.precision or own
    if precision not in (own, *ENGINES_ALONE):
        raise InputError(
            f"--precision is {precision} and this bundle's graphs compute in {own}: a build casts "
            "nothing, only the export knows what must stay float32; rism export --model "
            f"{one_line(manifest.model.name)} --precision {precision} -o DIR and build that, or "
            "leave it out"
        )
    _check_narrow(bundle, precision, options.weights)
    gpus = check_gpus(target, options.gpus, precision, gpus_here())
    check_weights(target, gpus, options.weights)
    library = installed_version(target)
    graphs = _graphs(manifest, options)
    calibrated = precision in ("fp8", "nvfp4")
    scales = options.scales if calibrated else None
    if calibrated and scales is None:
        if manifest.calibration is None:
            raise InputError(
                f"bundle '{bundle.path}' has no scales of activations for {precision}: run rism "
                f"calibrate {bundle.path} --images DIR, or pass --scales FILE"
            )
        scales = bundle.file(manifest.calibration)
    kind = [] if options.weights == "plan" else [options.weights]
    name = options.name or "-".join([target.name, precision, *kind])
    return _Build(bundle, target, library, gpus, precision, own, name, graphs, scales, options)


def _check_narrow(bundle: Bundle, precision: str, weights: str) -> None:
    """Refuse what weights in few bits cannot be built as."""
    inside = weights in ("plan", "streamed")
    flag = WEIGHT_FLAGS.get(weights, "").replace("_", "-")
    if precision.startswith("nvfp4") and not inside:
        raise InputError(
            f"--precision is {precision}, whose weights go into the plan: leave out --{flag}"
        )
    stored = bundle.manifest.precision.storage
    sides = {
        stored,
        *(each.precision.storage for each in bundle.manifest.graphs.values() if each.precision),
    }
    if not sides & {"int4", "int8"}:
        return
    if not inside:
        raise InputError(
            f"bundle '{bundle.path}' stores weights in 4 or 8 bits, which go into the plan: "
            f"leave out --{flag}, or export with --precision fp16 for it"
        )
    if precision in ENGINES_ALONE and stored in ("int4", "int8"):
        raise InputError(
            f"bundle '{bundle.path}' stores its transformer in {stored}, expected one in 16 bits "
            f"for {precision}: rism export --precision bf16 -o DIR, and build that"
        )


def _graphs(manifest: Manifest, options: BuildOptions) -> tuple[str, ...]:
    modes = tuple(options.captures) or manifest.captures
    for mode in modes:
        if mode not in manifest.captures:
            raise InputError(
                f"--capture has '{one_line(mode, limit=40)}', this bundle has "
                f"{', '.join(manifest.captures)}: export it again with --capture {one_line(mode)}"
            )
    return tuple(
        name
        for name in manifest.graphs
        if not name.startswith("transformer.") or name.partition("@")[0].split(".")[1] in modes
    )


def _listing(built: BuiltEngine) -> str:
    return json.dumps(
        {
            "graph": built.graph,
            "library": built.version,
            "activation_bytes": built.activation_bytes,
            "checks": [asdict(check) for check in built.checks],
            "not_known_without_a_gpu": [
                "which kernels a GPU takes for these layers, and how long they take",
                "whether the numbers are right: rism doctor compares them where the engine runs",
            ],
            "layers": [
                {"name": each.name, "type": each.type}
                | {kind: [astuple(tensor) for tensor in getattr(each, kind)] for kind in _TENSORS}
                for each in built.layers
            ],
        }
    )


def _folder_beside(bundle: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder on the bundle's disk."""
    try:
        return tempfile.TemporaryDirectory(
            prefix=f".{bundle.name}.engines.", dir=bundle.parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise OutputError(
            f"engines of '{bundle}' cannot be built beside it ({error.strerror or error}): "
            "expected a folder to write to on the same disk; copy the bundle to one"
        ) from None
