"""Finding a checkpoint and reading it: safetensors only, no code from it is ever run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rism.export.errors import CheckpointError, UnsupportedModelError
from rism.runtime.errors import one_line

__all__ = ["Checkpoint", "find_checkpoint", "load_component", "pipeline_name", "read_json"]

BUILT_IN = {"mini": Path(__file__).parent / "checkpoints" / "mini"}
HUB_IDS = {
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-4B",
    "flux2-klein-9b": "black-forest-labs/FLUX.2-klein-9B",
    "flux2-klein-base-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux2-klein-base-9b": "black-forest-labs/FLUX.2-klein-base-9B",
}
# Of the parts' folders only: some repositories hold a second copy as one large file beside them.
_PATTERNS = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]
_MAX_JSON = 64 * 2**20
_HUB_TIMEOUT_S = 20
_KV_REASON = (
    "its image tokens attend only to themselves, so there is no attention from the image to the "
    "prompt to read: use FLUX.2-klein-9B"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on disk, where it came from, and which version it is."""

    folder: Path
    source: str
    revision: str


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint.

    Raises:
        CheckpointError: It is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path} is larger than 64 MiB, expected a small JSON file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing, expected a folder in diffusers' layout: download it again"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def find_checkpoint(model: str, *, revision: str | None, offline: bool) -> Checkpoint:
    """Turn a name, a folder or a hub id into a folder on disk.

    Args:
        model: "mini", a short name of a published model, a folder, or "owner/name".
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds.
    """
    if "klein" in model.lower() and model.lower().rstrip("/").endswith("-kv"):
        raise UnsupportedModelError(f"{model} cannot be used: {_KV_REASON}")
    folder = BUILT_IN.get(model, Path(model))
    if folder.is_dir():
        source = "built-in" if model in BUILT_IN else "folder"
        return Checkpoint(folder, source, f"sha256:{_digest(folder)}")
    hub_id = HUB_IDS.get(model, model)
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        known = ", ".join([*BUILT_IN, *HUB_IDS])
        raise CheckpointError(
            f"no model '{one_line(model)}': expected one of {known}, an existing folder in "
            "diffusers' layout, or a hub id like owner/name"
        )
    return _from_hub(hub_id, revision=revision, offline=offline)


def _from_hub(hub_id: str, *, revision: str | None, offline: bool) -> Checkpoint:
    from huggingface_hub import HfApi, snapshot_download

    try:
        if not offline:
            # One request that fails at once; the download itself tries for minutes.
            revision = HfApi().model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT_S).sha
        folder = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=_PATTERNS, local_files_only=offline
            )
        )
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise CheckpointError(
            f"{hub_id} cannot be had from the model hub ({type(error).__name__}: "
            f"{one_line(error, limit=160)}): check the network and your access to the model, add "
            "--offline if it was downloaded before, or give a folder that holds it"
        ) from None
    return Checkpoint(folder, f"hub:{hub_id}", folder.name)


def _digest(folder: Path) -> str:
    """One digest over the names and contents of a checkpoint's files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{inner}\n".encode())
    return total.hexdigest()


def pipeline_name(folder: Path) -> str:
    """Return which diffusers pipeline a folder holds, refusing what cannot work."""
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    if name == "Flux2KleinKVPipeline":
        raise UnsupportedModelError(f"{folder.name} ({name}) cannot be used: {_KV_REASON}")
    return name


def load_component(kind: Any, folder: Path) -> Any:
    """Load one part of a pipeline in float32.

    Args:
        kind: a diffusers or transformers model class.
        folder: the part's folder, with config.json and safetensors.

    Raises:
        CheckpointError: Missing, truncated or mismatched weights.
    """
    read_json(folder / "config.json")
    if not list(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no .safetensors file: expected safetensors weights "
            "(pickled ones are never loaded)"
        )
    try:
        model, info = kind.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # each library has its own kinds for a broken file
        raise CheckpointError(
            f"{folder} cannot be loaded as {kind.__name__} ({one_line(error)}): download it again"
        ) from None
    wrong = {
        key: sorted(map(str, info.get(key) or [])) for key in ("missing_keys", "mismatched_keys")
    }
    for key, names in wrong.items():
        if names:
            raise CheckpointError(
                f"{folder} has {len(names)} {key.replace('_', ' ')} for {kind.__name__}, such as "
                f"{names[0]}: download it again"
            )
    return model.eval().requires_grad_(False)
