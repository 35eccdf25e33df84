"""A checkpoint on disk, and how the model hub brings one there. No code from it is ever run."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from rism.export.checkpoint.json_files import list_files
from rism.export.errors import CheckpointError
from rism.runtime.errors import one_line

_HUB_TIMEOUT_S = 20
_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, where it came from, and which version it is.

    Attributes:
        folder: holds the parts.
        source: "built-in", "folder", or "hub:" and the repository.
        revision: the commit; empty for folders, which `content_digest` names.
        transformer_file: the transformer in its makers' layout, instead of a folder of its own.
        weights: false if only the small files were fetched, to plan an export with.
        language: the text encoder's folder, where it is in none of the checkpoint's.
        pipeline: the pipeline's name, where no file has it.
        settings: options that replace values of its rism.json.
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
        """All folders that hold its files."""
        return (self.folder,) if self.language is None else (self.folder, self.language)

    @property
    def name(self) -> str:
        """Its name: that of the repository, the file or the folder."""
        if self.source.startswith("hub:"):
            return self.source.rpartition("/")[2]
        if self.transformer_file is not None:
            return self.transformer_file.stem
        return folder_name(self.folder)


def refuse_two_meanings(model: str, names: Iterable[str]) -> None:
    """Refuse a short name of a model if a checkpoint's folder of that name exists here.

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
    """The name of a folder; in the hub's cache the repository's, not the commit's."""
    found = folder.resolve()
    if found.parent.name == "snapshots":
        return found.parent.parent.name.rpartition("--")[2]
    return found.name


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
    except Exception as error:  # the hub raises errors of three libraries
        raise hub_failure(hub_id, error) from None


def hub_failure(hub_id: str, error: Exception) -> CheckpointError:
    """Return the error for a repository that the hub does not give."""
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
