"""Writing a bundle: load, trace, store, compare, rename (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

import rism
from rism.export.capture import CAPTURE_MODES, FEATURE_SITES
from rism.export.checkpoint import Checkpoint, find_checkpoint, pipeline_name
from rism.export.errors import ExportError, UnsupportedModelError
from rism.export.families import FAMILIES
from rism.export.graphs import CaptureGraph, CaptureOptions
from rism.export.parity import Check, check_encoders, check_transformer
from rism.export.spec import LoadedModel
from rism.export.trace import trace
from rism.export.weights import WeightFile, store_weights
from rism.runtime.bundle import Bundle
from rism.runtime.errors import InputError, OutputError

__all__ = ["ExportReport", "export_bundle"]

SCHEMA_VERSION = "1.0"
_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
_NOISE_SEED = 0

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written and how near it is to the PyTorch model.

    Attributes:
        path: the bundle.
        size_bytes: all of its files.
        parity: largest errors by graph and output.
    """

    path: Path
    size_bytes: int
    parity: dict[str, dict[str, Check]]

    def parity_table(self) -> str:
        """One line per graph output: error, limit."""
        rows = [
            f"{graph:<24} {name:<22} {check.error:9.2e}  (limit {check.limit:.0e})"
            for graph, checks in self.parity.items()
            for name, check in checks.items()
        ]
        return "\n".join(rows)


def export_bundle(
    model: str,
    output: Path,
    *,
    captures: Sequence[str] = ("vectors",),
    feature_site: str = "mmsa",
    token_attention: bool = False,
    revision: str | None = None,
    offline: bool = False,
    progress: Say | None = None,
) -> ExportReport:
    """Export a model as a bundle.

    Args:
        model: "mini", a published model's short name, a folder, or a hub id.
        output: the folder to make; it must not exist, or be empty.
        captures: capture modes to include, the default one first.
        feature_site: "mmsa", "adaln" or "block" (table 3 of the paper).
        token_attention: add attention per prompt token to every transformer graph.
        revision: branch, tag or commit on the hub.
        offline: do not ask the hub.
        progress: called with one line before each stage.

    Raises:
        CheckpointError: The model cannot be found or read.
        UnsupportedModelError: The method cannot work with it.
        ParityError: A graph does not agree with PyTorch; nothing is left behind.
        OutputError: The place cannot be written.
    """
    say = progress or (lambda _line: None)
    modes = _checked_modes(captures, feature_site)
    _check_output(output)
    checkpoint = find_checkpoint(model, revision=revision, offline=offline)
    say(f"loading {checkpoint.folder.name}")
    loaded = _load(checkpoint)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise _unwritable(output, error) from None
    try:
        # mkdtemp makes a folder for its owner alone; a bundle is an ordinary folder.
        work.chmod(0o777 & ~_umask())
        parity = _write(loaded, work, modes, feature_site, token_attention, say)
        _write_manifest(loaded, checkpoint, work, modes, feature_site, parity)
        Bundle.open(work)
        if output.is_dir():
            output.rmdir()
        work.replace(output)
    except OSError as error:
        raise _unwritable(output, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.iterdir())
    return ExportReport(output, size, parity)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output} cannot be written ({error.strerror or error}): choose a folder on a disk with "
        "room that you may write to; nothing was left there"
    )


def _checked_modes(captures: Sequence[str], feature_site: str) -> tuple[str, ...]:
    modes = tuple(dict.fromkeys(captures))
    unknown = [mode for mode in modes if mode not in CAPTURE_MODES]
    if unknown or not modes:
        raise InputError(
            f"capture {', '.join(unknown) or 'nothing'} is not known, expected some of "
            f"{', '.join(CAPTURE_MODES)}"
        )
    if feature_site not in FEATURE_SITES:
        raise InputError(
            f"feature site {feature_site} is not known, expected one of {', '.join(FEATURE_SITES)}"
        )
    return modes


def _check_output(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"{output} is not a folder: choose another place with -o")
    if output.is_dir() and any(output.iterdir()):
        raise OutputError(
            f"{output} exists and is not empty: remove it or choose another place with -o"
        )


def _load(checkpoint: Checkpoint) -> LoadedModel:
    pipeline = pipeline_name(checkpoint.folder)
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family.load(checkpoint.folder)
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UnsupportedModelError(
        f"{checkpoint.folder.name} is a {pipeline}, expected one of: {known}. The method needs "
        "joint attention over prompt, noisy and clean image tokens"
    )


def _write(
    loaded: LoadedModel,
    work: Path,
    modes: tuple[str, ...],
    feature_site: str,
    token_attention: bool,
    say: Say,
) -> dict[str, dict[str, Check]]:
    """Write everything but the manifest, and compare it with PyTorch."""
    spec = loaded.spec
    (work / spec.prompt.tokenizer).write_text(loaded.tokenizer_json, encoding="utf-8")
    shape = (spec.noise_rows, spec.latent_channels)
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(shape, dtype=np.float32)
    noise.astype("<f4").tofile(work / "noise.f32")
    say("tracing the text encoder")
    _write_graph(_trace_text(loaded), work, "text_encoder")
    say("tracing the VAE encoder")
    _write_graph(_trace_vae(loaded), work, "vae_encoder")
    with WeightFile(work / "transformer.weights") as weights:
        for mode in modes:
            say(f"tracing the transformer, capture {mode}")
            options = CaptureOptions(mode, feature_site, token_attention)
            graph = _trace_transformer(loaded, options)
            store_weights(graph, weights)
            ir.save(graph, work / f"transformer.{mode}.onnx")
    say("comparing with PyTorch")
    parity = check_encoders(loaded, work)
    return parity | check_transformer(loaded, work, modes=modes, feature_site=feature_site)


def _write_graph(graph: ir.Model, work: Path, name: str) -> None:
    with WeightFile(work / f"{name}.weights") as file:
        store_weights(graph, file)
        ir.save(graph, work / f"{name}.onnx")


def _trace_text(loaded: LoadedModel) -> ir.Model:
    length = loaded.spec.prompt.max_length
    ids = torch.zeros(2, length, dtype=torch.int64)
    free = {0: "batch"}
    return trace(
        loaded.text_encoder,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        outputs=["prompt_embeds"],
        dynamic={"input_ids": free, "attention_mask": free},
    )


def _trace_vae(loaded: LoadedModel) -> ir.Model:
    token = loaded.spec.geometry.token_px
    return trace(
        loaded.vae_encoder,
        {"image": torch.zeros(1, 3, 6 * token, 4 * token)},
        outputs=["clean_latents"],
        dynamic={"image": {2: "height", 3: "width"}, "clean_latents": {1: "tokens"}},
    )


def _trace_transformer(loaded: LoadedModel, options: CaptureOptions) -> ir.Model:
    spec = loaded.spec
    tokens, length = 20, spec.prompt.max_length
    inputs = {
        "clean_latents": torch.zeros(2, tokens, spec.latent_channels),
        "noise": torch.zeros(1, tokens, spec.latent_channels),
        "prompt_embeds": torch.zeros(2, length, spec.prompt_dim),
        "prompt_weights": torch.ones(2, length),
        "positions": torch.zeros(tokens, 2),
    }
    if options.mode == "scores":
        inputs["tau"] = torch.tensor([spec.tau])
    return trace(
        CaptureGraph(loaded.dit, spec, options),
        inputs,
        outputs=options.outputs,
        dynamic={
            "clean_latents": {0: "batch", 1: "tokens"},
            "noise": {1: "tokens"},
            "prompt_embeds": {0: "batch"},
            "prompt_weights": {0: "batch"},
            "positions": {0: "tokens"},
        },
    )


def _write_manifest(
    loaded: LoadedModel,
    checkpoint: Checkpoint,
    work: Path,
    modes: tuple[str, ...],
    feature_site: str,
    parity: dict[str, dict[str, Check]],
) -> None:
    spec = loaded.spec
    graphs = ["text_encoder", "vae_encoder", *(f"transformer.{mode}" for mode in modes)]
    manifest = {
        "format": "rism-bundle",
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": spec.name,
            "family": spec.family.name,
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "licence": spec.licence,
            "demonstrator": spec.demonstrator,
        },
        "created_with": {"rism": rism.__version__} | _versions(),
        "precision": {
            "compute": "float32",
            "storage": _storage(work / f"transformer.{modes[0]}.onnx"),
        },
        "geometry": asdict(spec.geometry),
        "prompt": asdict(spec.prompt),
        "method": {
            "tau": spec.tau,
            "timestep": spec.timestep,
            "double_blocks": spec.double_blocks,
            "single_blocks": spec.single_blocks,
            "feature_block": spec.feature_block,
            "feature_site": feature_site,
            "feature_dim": spec.feature_dim,
            "prototype": "equation",
        },
        "noise": {
            "file": "noise.f32",
            "dtype": "float32",
            "shape": [spec.noise_rows, spec.latent_channels],
        },
        "default_capture": modes[0],
        "graphs": {name: _graph_entry(work / f"{name}.onnx") for name in graphs},
        "files": {path.name: _file_entry(path) for path in sorted(work.iterdir())},
        "parity": {
            graph: {
                name: {"max_error": float(f"{check.error:.3g}"), "limit": check.limit}
                for name, check in checks.items()
            }
            for graph, checks in parity.items()
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (work / "manifest.json").write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _storage(path: Path) -> str:
    """The float type that holds most of the transformer's weights."""
    sizes: dict[str, int] = {}
    for value in ir.load(path).graph.initializers.values():
        if (
            value.const_value is not None
            and value.dtype is not None
            and value.dtype.is_floating_point()
        ):
            name = str(value.dtype.numpy())
            sizes[name] = sizes.get(name, 0) + value.const_value.size
    if not sizes:
        raise ExportError(f"{path.name} holds no weights: this is a fault in the exporter")
    return max(sizes, key=lambda name: sizes[name])


def _graph_entry(path: Path) -> dict[str, Any]:
    graph = ir.load(path).graph
    return {
        "file": path.name,
        "inputs": {value.name: _tensor_entry(value) for value in graph.inputs},
        "outputs": {value.name: _tensor_entry(value) for value in graph.outputs},
    }


def _tensor_entry(value: ir.Value) -> dict[str, Any]:
    assert value.shape is not None
    assert value.dtype is not None
    shape = [size if isinstance(size, int) else str(size.value or "?") for size in value.shape]
    return {"name": value.name, "dtype": str(value.dtype.numpy()), "shape": shape}


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}
