"""Finding a checkpoint: names, folders, files, the hub. No code from it is ever run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from rism.export.checkpoint.json_files import list_files, read_json
from rism.export.errors import CheckpointError, UnsupportedModelError
from rism.runtime.errors import one_line

__all__ = [
    "BUILT_IN",
    "HUB_IDS",
    "MAKERS",
    "STEP1X",
    "Checkpoint",
    "content_digest",
    "fetch_snapshot",
    "find_checkpoint",
    "folder_name",
    "hub_failure",
    "pipeline_name",
    "refuse_two_meanings",
]

BUILT_IN = {"mini": Path(__file__).parents[1] / "builtin" / "mini"}
HUB_IDS = {
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-4B",
    "flux2-klein-9b": "black-forest-labs/FLUX.2-klein-9B",
    "flux2-klein-base-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux2-klein-base-9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "step1x": "stepfun-ai/Step1X-Edit",
    "step1x-v1.1": "stepfun-ai/Step1X-Edit-v1p1-diffusers",
    "step1x-v1.2": "stepfun-ai/Step1X-Edit-v1p2",
}
STEP1X = "Step1XEdit"
"""Stands for a pipeline where Step1X-Edit is in its makers' layout."""


@dataclass(frozen=True)
class _Makers:
    """A repository in its makers' layout: which files are one model.

    Attributes:
        pipeline: what it is for.
        transformer: file.
        others: more files of the repository.
        language: the repository of its text encoder.
    """

    pipeline: str
    transformer: str
    others: tuple[str, ...]
    language: str


MAKERS = {
    "stepfun-ai/Step1X-Edit": _Makers(
        STEP1X, "step1x-edit-i1258.safetensors", ("vae.safetensors",), "Qwen/Qwen2.5-VL-7B-Instruct"
    )
}
# Of the parts' folders only: some repositories hold a second copy as one large file beside them.
_PATTERNS = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]
_HUB_TIMEOUT_S = 20
_BLOCK = 4 * 2**20
_KV_REASON = (
    "its image tokens attend only to themselves, so there is no attention from the image to the "
    "prompt to read: use FLUX.2-klein-9B"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, where it came from, and which version it is.

    Attributes:
        folder: holds the parts.
        source: "built-in", "folder", or "hub:" and the repository.
        revision: the commit; empty for folders, which `content_digest` names.
        transformer_file: the transformer in its makers' layout, instead of a folder of its own.
        weights: false if only the small files are here, to plan an export with.
        language: the text encoder's folder, where it is in none of the checkpoint's.
        pipeline: what it is for, where no file says so.
        settings: what was asked for, before what its rism.json says.
    """

    folder: Path
    source: str
    revision: str
    transformer_file: Path | None = None
    weights: bool = True
    language: Path | None = None
    pipeline: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that it is made of."""
        return (self.folder,) if self.language is None else (self.folder, self.language)

    @property
    def name(self) -> str:
        """What people call it: the repository, the file or the folder."""
        if self.source.startswith("hub:"):
            return self.source.rpartition("/")[2]
        if self.transformer_file is not None:
            return self.transformer_file.stem
        return folder_name(self.folder)


def find_checkpoint(
    model: str, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> Checkpoint:
    """Turn a name, a folder or a hub id into a folder on disk.

    Args:
        model: "mini", a short name of a published model, a folder ("./mini" where it is named
            like one of these), or "owner/name".
        revision: branch, tag or commit on the hub.
        offline: use only what the hub's cache already holds; so does HF_HUB_OFFLINE=1.
        weights: without them only the small files are fetched from the hub.

    Raises:
        CheckpointError: There is no such model, the hub does not give it, or a name is also a
            checkpoint's folder here.
        UnsupportedModelError: The method cannot work with it.
    """
    if "klein" in model.lower() and model.lower().rstrip("/").endswith("-kv"):
        raise UnsupportedModelError(f"{model} cannot be used: {_KV_REASON}")
    refuse_two_meanings(model, (*BUILT_IN, *HUB_IDS))
    folder = BUILT_IN.get(model, Path(model))
    if folder.is_dir() and model not in HUB_IDS:
        source = "built-in" if model in BUILT_IN else "folder"
        return Checkpoint(folder, source, "", _lone_file(folder))
    if folder.suffix == ".safetensors" and folder.is_file():
        return Checkpoint(folder.parent, "file", "", folder)
    hub_id = HUB_IDS.get(model, model)
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        known = ", ".join([*BUILT_IN, *HUB_IDS])
        raise CheckpointError(
            f"no model '{one_line(model)}': expected one of {known}, an existing folder in "
            "diffusers' or its makers' layout, or a hub id like owner/name"
        )
    return _from_hub(hub_id, revision=revision, offline=offline, weights=weights)


def refuse_two_meanings(model: str, names: Iterable[str]) -> None:
    """Refuse a name of a known model that a checkpoint's folder has here, too.

    Raises:
        CheckpointError: It is one.
    """
    parts = ("model_index.json", "config.json", "transformer", "text_encoder")
    folder = Path(model)
    if model in names and (
        any((folder / part).exists() for part in parts) or list_files(folder, "*.safetensors")
    ):
        raise CheckpointError(
            f"'{model}' is a model that rism knows by this name, and also a checkpoint's folder "
            f"here: write ./{model} for the folder, or call it otherwise for the model"
        )


def folder_name(folder: Path) -> str:
    """What people call a folder: in the hub's cache the repository, not the commit."""
    found = folder.resolve()
    if found.parent.name == "snapshots":
        return found.parent.parent.name.rpartition("--")[2]
    return found.name


def _lone_file(folder: Path) -> Path | None:
    """Return the transformer's file of a folder that is not in diffusers' layout."""
    if (folder / "model_index.json").exists() or (folder / "transformer").exists():
        return None
    files = [
        path
        for path in list_files(folder, "*.safetensors")
        if any(word in path.name.lower() for word in ("klein", "step1x"))
    ]
    # A whole download of Step1X-Edit holds two versions; the first is the one of the paper.
    first = [path for path in files if path.name == MAKERS["stepfun-ai/Step1X-Edit"].transformer]
    files = first or files
    return files[0] if len(files) == 1 else None


def _from_hub(hub_id: str, *, revision: str | None, offline: bool, weights: bool) -> Checkpoint:
    makers = MAKERS.get(hub_id)
    patterns = [*_PATTERNS] if makers is None else [makers.transformer, *makers.others, "*.json"]
    folder = fetch_snapshot(hub_id, patterns, revision=revision, offline=offline, weights=weights)
    if makers is None:
        return Checkpoint(folder, f"hub:{hub_id}", folder.name, weights=weights)
    language = fetch_snapshot(
        makers.language,
        ["*.json", "*.safetensors", "*.txt", "*.jinja"],
        revision=None,
        offline=offline,
        weights=weights,
    )
    return Checkpoint(
        folder,
        f"hub:{hub_id}",
        folder.name,
        folder / makers.transformer if weights else None,
        weights=weights,
        language=language,
        pipeline=makers.pipeline,
    )


def fetch_snapshot(
    hub_id: str, patterns: list[str], *, revision: str | None, offline: bool, weights: bool
) -> Path:
    """Bring some files of a hub repository here, or find them in the hub's cache.

    Args:
        hub_id: "owner/name".
        patterns: of the files.
        revision: branch, tag or commit.
        offline: use only the cache, as HF_HUB_OFFLINE=1 says for all of the hub's programs.
        weights: without them, patterns of safetensors are left out.

    Raises:
        CheckpointError: The hub does not give them.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        if not offline:
            # One request that fails at once; the download itself tries for minutes.
            revision = HfApi().model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT_S).sha
        wanted = [p for p in patterns if weights or not p.endswith(".safetensors")]
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=wanted, local_files_only=offline
            )
        )
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise hub_failure(hub_id, error) from None


def hub_failure(hub_id: str, error: Exception) -> CheckpointError:
    """Return what is said when the hub does not give a repository."""
    return CheckpointError(
        f"{hub_id} cannot be had from the model hub ({type(error).__name__}: "
        f"{one_line(error, limit=160)}): check the network and your access to the model, add "
        "--offline if it was downloaded before, or give a folder that holds it"
    )


def content_digest(folders: Sequence[Path], stop: Event) -> str:
    """One digest over the names and contents of a checkpoint's files; "" once `stop` is set.

    Args:
        folders: of the checkpoint; what lies in several counts once.
        stop: ends it early; hundreds of files of gigabytes take minutes.

    Raises:
        CheckpointError: A file cannot be read.
    """
    total = hashlib.sha256()
    for path, name in _files_of(folders):
        inner = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    inner.update(block)
                    if stop.is_set():
                        return ""
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror or error}): check the folder"
            ) from None
        total.update(f"{name}\0{inner.hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _files_of(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    found: dict[Path, str] = {}
    for folder in folders:
        # A part may be a link to a folder elsewhere, which `rglob` would not enter.
        for path in list_files(folder, "*", "*/*"):
            hidden = path.parent != folder and path.parent.name.startswith(".")
            if path.suffix in (".json", ".safetensors") and not hidden:
                found.setdefault(path, path.relative_to(folder).as_posix())
    return sorted(found.items(), key=lambda item: item[1])


def pipeline_name(checkpoint: Checkpoint) -> str:
    """Return which pipeline a checkpoint is for, refusing what cannot work.

    Returns:
        The diffusers pipeline; "" where a file of the makers' has to say it.

    Raises:
        CheckpointError: There is no model_index.json.
        UnsupportedModelError: A model whose image tokens do not attend to the prompt.
    """
    folder = checkpoint.folder
    if checkpoint.transformer_file is not None:
        if checkpoint.transformer_file.stem.lower().endswith("-kv"):
            raise UnsupportedModelError(
                f"{checkpoint.transformer_file.name} cannot be used: {_KV_REASON}"
            )
        return ""
    if checkpoint.pipeline:
        return checkpoint.pipeline
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    if name == "Flux2KleinKVPipeline":
        raise UnsupportedModelError(f"{folder.name} ({name}) cannot be used: {_KV_REASON}")
    return name
