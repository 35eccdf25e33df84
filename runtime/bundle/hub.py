"""Bundles on the Hugging Face hub, by "owner/name" or "owner/name@revision".

The hub's own cache holds links to files named by their hashes, which neither the reader of bundles
nor engines follow. So a bundle's files are linked once more, as plain files, into rism's folder of
bundles; on one disk that costs no room.
"""

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rism.runtime.atomic_write import link_or_copy
from rism.runtime.bundle.manifest_file import parse_manifest_file
from rism.runtime.distribution import install_hint
from rism.runtime.errors import BundleError, one_line
from rism.runtime.user_cache import user_cache

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?", re.ASCII)
_MANIFEST = "manifest.json"


def bundles_folder() -> Path:
    """Return where bundles are kept that no command named a place for; it may not exist.

    Raises:
        BundleError: this user has no folder for caches.
    """
    try:
        return user_cache() / "rism" / "bundles"
    except ValueError as error:
        raise BundleError(f"{error}: set XDG_CACHE_HOME to a folder") from None


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be a hub's; "bundles/x" is a path where there is a folder bundles."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name.partition("/")[0]).exists()


def import_hub(what: str) -> Any:
    """Import huggingface_hub.

    Raises:
        BundleError: it is not installed; `what` says what needs it.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise BundleError(
            f"{what} needs huggingface-hub, which is not installed: {install_hint('hub')}"
        ) from None
    return huggingface_hub


def fetch_bundle(hub_id: str) -> Path:
    """Return the folder of a hub's bundle, "owner/name[@revision]", fetching it if need be.

    `Bundle.open` checks it. HF_HUB_OFFLINE=1 uses only what the hub's cache holds.

    Raises:
        BundleError: it cannot be had, is no bundle, or has links that leave the hub's cache.
    """
    match = _HUB_ID.fullmatch(hub_id)
    if match is None:
        raise BundleError(f"'{one_line(hub_id)}' is no hub id, expected owner/name[@revision]")
    repository, revision = match[1], match[2]
    snapshot = _snapshot(repository, revision, [_MANIFEST])
    folder = bundles_folder() / f"{repository.replace('/', '--')}-{snapshot.name[:12]}"
    if (folder / _MANIFEST).is_file():
        return folder
    names = list(parse_manifest_file(_inside(snapshot, _MANIFEST)).files)
    snapshot = _snapshot(repository, snapshot.name, [_MANIFEST, *names])
    _materialize(snapshot, [*names, _MANIFEST], folder)
    return folder


def _snapshot(repository: str, revision: str | None, names: list[str]) -> Path:
    hub = import_hub(f"bundle '{repository}'")
    from huggingface_hub import constants

    try:
        return Path(
            hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=names,
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise BundleError(
            f"bundle '{repository}' is no folder here and cannot be had from the model hub "
            f"({type(error).__name__}: {one_line(error, limit=160)}): check the name, the network "
            "and your access, or give a folder that rism export wrote"
        ) from None


def _inside(snapshot: Path, name: str) -> Path:
    """Return the plain file behind a name of a snapshot, which is <repository>/snapshots/<commit>.

    Raises:
        BundleError: it is missing, no file, or a link out of the repository's folder.
    """
    root = snapshot.parent.parent.resolve()
    try:
        file = (snapshot / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise BundleError(
            f"{snapshot} lacks '{one_line(name)}': expected a bundle that rism push uploaded, "
            "fetch it again"
        ) from None
    if not file.is_relative_to(root) or not file.is_file():
        raise BundleError(
            f"{snapshot}: '{one_line(name)}' leads out of the hub's cache to {file}: remove "
            f"{root} and fetch the bundle again"
        )
    return file


def _materialize(snapshot: Path, names: list[str], folder: Path) -> None:
    """Make a folder of plain files, whole or not at all."""
    sources = {name: _inside(snapshot, name) for name in names}
    work = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, source in sources.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, work / name)
        work.replace(folder)
    except OSError as error:
        if not (folder / _MANIFEST).is_file():  # nor did another process make it meanwhile
            raise BundleError(
                f"{folder} cannot be written ({error.strerror or error}): make room, or set "
                "XDG_CACHE_HOME to another place"
            ) from None
    finally:
        if work is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(work)
