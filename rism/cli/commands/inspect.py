"""`rism inspect`: the contents of a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rism.cli.console import Console, write_stdout
from rism.cli.flags import BUNDLE_HELP, CommandFlags, argument, option
from rism.runtime.errors import one_line

if TYPE_CHECKING:
    from rism.runtime.bundle.graph_spec import TensorSpec
    from rism.runtime.bundle.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class InspectFlags(CommandFlags):
    """The flags of `rism inspect`."""

    bundle: str | None = argument(None, metavar="BUNDLE", help=BUNDLE_HELP)
    as_json: bool = option(False, "--json", help="Print JSON.")


def inspect(flags: InspectFlags, console: Console) -> None:  # noqa: ARG001
    """Check a bundle's files and print its contents."""
    from rism.runtime.bundle.reader import Bundle, resolve_bundle

    bundle = Bundle.open(resolve_bundle(flags.bundle), verify=True)
    # Running a bundle needs no parity figures, so they are not in `Manifest`.
    parity = json.loads(bundle.file("manifest.json").read_bytes()).get("parity")
    if not isinstance(parity, dict):
        parity = {}
    if flags.as_json:
        record = {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "verified": True,
            **asdict(bundle.manifest),
            "parity": parity,
        }
        write_stdout(json.dumps(record, indent=2) + "\n")
        return
    lines = [
        f"bundle     {bundle.path} (format {bundle.manifest.schema_version})",
        *_about(bundle.manifest),
        *_graphs(bundle.manifest),
        *_engines(bundle.manifest),
        *_files(bundle.manifest),
        *_parity(parity),
    ]
    write_stdout("\n".join(lines) + "\n")


def _about(manifest: Manifest) -> Iterator[str]:
    model, geometry = manifest.model, manifest.geometry
    prompt, method = manifest.prompt, manifest.method
    kind = ", a demonstrator" if model.demonstrator else ""
    yield f"model      {one_line(model.name)} ({one_line(model.family)}{kind})"
    if model.scope is not None:
        yield f"knows      {', '.join(model.scope.nouns)}"
    yield f"source     {one_line(model.source)} at {one_line(model.revision)}"
    yield f"licence    {one_line(model.licence)}"
    yield f"made with  {', '.join(f'{k} {v}' for k, v in manifest.created_with.items())}"
    yield (
        f"precision  computes in {one_line(manifest.precision.compute)}, "
        f"stores {one_line(manifest.precision.storage)}"
        + (f", on CPUs in {one_line(manifest.precision.cpu)}" if manifest.precision.cpu else "")
    )
    if geometry.sizes:
        sizes = ", ".join(f"{width} x {height}" for width, height in geometry.sizes)
        yield f"geometry   fixed sizes {sizes}, tokens of {geometry.token_px} px"
    else:
        yield (
            f"geometry   {geometry.size_level} x {geometry.size_level} pixels of area, "
            f"resize {geometry.resize}, remainder {geometry.remainder}, "
            f"sides in {geometry.multiple_px} px, tokens of {geometry.token_px} px"
        )
    yield f'prompt     "{one_line(prompt.template)}", at most {prompt.max_length} tokens'
    yield (
        f"method     tau {method.tau:g}, {method.double_blocks} double and "
        f"{method.single_blocks} single blocks, features {one_line(method.feature_site)} of "
        f"block {method.feature_block} ({method.feature_dim}), "
        f"prototypes by {method.prototype}"
    )
    if method.capture_blocks is not None:
        yield f"           attention of blocks {', '.join(map(str, method.capture_blocks))}"
    if method.noisy_grid > 1:
        yield f"           noisy tokens in one of {method.noisy_grid} rows and columns"


def _graphs(manifest: Manifest) -> Iterator[str]:
    for name, graph in manifest.graphs.items():
        default = name.partition("@")[0] == f"transformer.{manifest.default_capture}"
        files = ", ".join(filter(None, [graph.file, graph.cpu]))
        yield f"graph      {one_line(name)} ({files}){', the default' if default else ''}"
        for arrow, tensors in (("<-", graph.inputs), ("->", graph.outputs)):
            for logical, tensor in tensors.items():
                yield f"           {arrow} {_tensor(logical, tensor)}"


def _tensor(logical: str, tensor: TensorSpec) -> str:
    renamed = "" if tensor.name == logical else f" as {one_line(tensor.name)}"
    shape = ", ".join(str(size) for size in tensor.shape)
    return f"{one_line(logical)} {tensor.dtype} ({one_line(shape)}){renamed}"


def _engines(manifest: Manifest) -> Iterator[str]:
    for variant in manifest.engines:
        outside = ", weights from the bundle" if variant.stripped or variant.bound else ""
        yield (
            f"engine     {variant.name}: {one_line(variant.target)} {variant.version} for "
            f"{one_line(variant.platform)}, compute capability "
            f"{', '.join(variant.compute_capabilities)}, {one_line(variant.precision)}{outside}"
        )
        for graph, plan in variant.graphs.items():
            yield f"           {one_line(graph)} ({plan.file})"
            for logical, each in plan.shapes.items():
                shapes = f"{list(each.min)} to {list(each.max)}, best {list(each.opt)}"
                shown = f"{list(each.opt)}" if each.min == each.max else shapes
                yield f"           <- {one_line(logical)} {shown}"
    if manifest.calibration is not None:
        yield f"scales     {manifest.calibration} for FP8 engines"
    if manifest.self_test is not None:
        test = manifest.self_test
        graphs = one_line(", ".join(test.graphs), limit=200)
        yield f"self-test  {test.file} by {one_line(test.made_by, limit=80)}: {graphs}"


def _files(manifest: Manifest) -> Iterator[str]:
    for name, info in sorted(manifest.files.items()):
        yield f"file       {name}  {_size(info.size)}  sha256 {info.sha256[:16]} verified"
    yield f"total      {_size(sum(info.size for info in manifest.files.values()))}"


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures of the export's parity gate, in whatever shape a newer exporter wrote."""
    for graph, outputs in parity.items():
        rows = outputs.items() if isinstance(outputs, dict) else [("", outputs)]
        for output, figures in rows:
            pairs = figures.items() if isinstance(figures, dict) else [("", figures)]
            text = ", ".join(f"{key} {_number(value)}".strip() for key, value in pairs)
            yield f"parity     {one_line(f'{graph} {output}: {text}')}"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
