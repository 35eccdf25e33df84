"""Writing a bundle's manifest (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

import rism
from rism.export.bundle_writer import TEXT_SIDE, BundleWriter
from rism.export.errors import ExportError
from rism.export.graph.cpu_form import cpu_form
from rism.export.precision import Precision
from rism.runtime.bundle.reader import is_companion

# The oldest format that can say everything: readers of it need no more than that.
_SCHEMAS = {
    "1.4": {"modulation"},
    "1.3": {"unseen_position", "arithmetic"},
    # of the geometry, and of the prompt
    "1.2": {"rounding", "resize_in"}
    | {"drop", "padding", "unseen_id", "unseen_attended", "positions", "quotes", "vision"},
    "1.1": set[str](),
}
# Weights in few bits; what else is an integer counts nothing.
_INTEGERS = (ir.DataType.INT4, ir.DataType.INT8)
_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")


def write_manifest(writer: BundleWriter, revision: str) -> None:
    """Write manifest.json over everything that a writer has put into its folder.

    Args:
        writer: when all graphs are written and compared.
        revision: which version of the checkpoint.
    """
    folder, export = writer.work, writer.export
    spec, captures = export.model.spec, export.plan.captures
    first = next(name for name in writer.graphs if name.startswith(f"transformer.{captures[0]}"))
    geometry, prompt = _said(spec.geometry), _said(spec.prompt)
    said = {*geometry, *prompt, *prompt.get("vision", ()), *writer.graphs}
    manifest = {
        "format": "rism-bundle",
        "schema_version": next((v for v, keys in _SCHEMAS.items() if keys & said), "1.1"),
        "model": {
            "name": spec.name,
            "family": spec.family.name,
            "source": export.checkpoint.source,
            "revision": revision,
            "licence": spec.licence,
            "demonstrator": spec.demonstrator,
        }
        | ({} if spec.scope is None else {"scope": dict(spec.scope)}),
        "created_with": {"rism": rism.__version__} | _versions(),
        "precision": _precision(export.precision, folder / writer.graphs[first]),
        "geometry": geometry,
        "prompt": prompt,
        "method": {
            "tau": spec.tau,
            "timestep": spec.timestep,
            "double_blocks": spec.double_blocks,
            "single_blocks": spec.single_blocks,
            "feature_block": spec.feature_block,
            "feature_site": export.options.feature_site,
            "feature_dim": spec.feature_dim,
            "prototype": "equation",
        }
        | ({} if spec.capture_blocks is None else {"capture_blocks": list(spec.capture_blocks)})
        | ({} if spec.noisy_grid == 1 else {"noisy_grid": spec.noisy_grid})
        | ({} if spec.confidence is None else {"confidence": dict(spec.confidence)}),
        "noise": {
            "file": "noise.f32",
            "dtype": "float32",
            "shape": [spec.noise_rows, spec.latent_channels],
        },
        "default_capture": captures[0],
        "graphs": {name: _graph_entry(writer, name) for name in writer.graphs},
        "files": {
            path.name: writer.weights.get(path.name) or _file_entry(path)
            for path in sorted(folder.iterdir())
            if path.suffix != ".lock" and not is_companion(path)
        },
        "parity": {"depth": export.plan.parity}
        | {
            graph: {
                name: {"max_error": float(f"{check.error:.3g}"), "limit": check.limit}
                for name, check in checks.items()
            }
            for graph, checks in writer.parity.items()
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def _said(rules: Any) -> dict[str, Any]:
    """Rules as JSON has them, without what a reader takes for granted."""
    return {
        each.name: _plain(getattr(rules, each.name))
        for each in fields(rules)
        if each.default is MISSING or getattr(rules, each.name) != each.default
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _said(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _precision(precision: Precision, path: Path) -> dict[str, str]:
    """What a manifest says of the number types of a graph."""
    found = {"compute": _type_name(precision.compute), "storage": _storage(path)}
    wide = precision.on_cpu
    if wide is not None and wide.compute != precision.compute:
        found["cpu"] = _type_name(wide.compute)
    return found


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _storage(path: Path) -> str:
    """The type that holds most of a graph's weights."""
    sizes: dict[str, int] = {}
    for value in ir.load(path).graph.initializers.values():
        if (
            value.const_value is not None
            and value.dtype is not None
            and (value.dtype.is_floating_point() or value.dtype in _INTEGERS)
        ):
            name = _dtype(value)
            sizes[name] = sizes.get(name, 0) + value.const_value.size
    if not sizes:
        raise ExportError(f"{path.name} holds no weights: this is a fault in the exporter")
    return max(sizes, key=lambda name: sizes[name])


def _graph_entry(writer: BundleWriter, name: str) -> dict[str, Any]:
    """What a manifest says of a graph: its files, inputs and outputs."""
    export, path = writer.export, writer.work / writer.graphs[name]
    graph = ir.load(path).graph
    cpu = cpu_form(path.name)
    own = {}
    if name in TEXT_SIDE and export.options.text_precision is not None:
        own["precision"] = _precision(export.text_precision, path)
    return {
        "file": path.name,
        **({"cpu": cpu} if path.with_name(cpu).exists() else {}),
        **own,
        "inputs": {value.name: _tensor_entry(value) for value in graph.inputs},
        "outputs": {value.name: _tensor_entry(value) for value in graph.outputs},
    }


def _tensor_entry(value: ir.Value) -> dict[str, Any]:
    assert value.shape is not None
    shape = [size if isinstance(size, int) else str(size.value or "?") for size in value.shape]
    return {"name": value.name, "dtype": _dtype(value), "shape": shape}


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}
