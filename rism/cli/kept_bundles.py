"""Bundles in this user's cache: those of the hub, and the exports of `rism run --model`."""

import os
import re
import sys
from pathlib import Path

from rism import __version__
from rism.cli.console import Console, UsageError
from rism.runtime.bundle.hub import bundles_folder
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import RismError

_ASK_ABOVE_BYTES = 1_000_000_000


def exported_bundle(
    model: str, *, precision: str | None, capture: str | None, yes: bool, console: Console
) -> Path:
    """Return a published model's bundle from the cache, exported there if this is the first time.

    Before gigabytes are downloaded, the user is asked, unless `yes`.

    Raises:
        UsageError: the model is a folder or a file.
        RismError: the answer was no, nobody can be asked, or the export failed.
    """
    path = model.startswith((".", os.sep)) or (os.sep in model and Path(model).is_dir())
    if path or model.endswith(".safetensors"):
        raise UsageError(
            f"--model {model} is on this machine, expected a published model's name or hub id: "
            "rism export --model ... -o DIR, then --bundle DIR"
        )
    stem = f"{model.replace('/', '--')}-{precision or 'published'}-{capture or 'vectors'}-"
    # A bundle in the cache is used without PyTorch and without asking the hub for a newer one.
    name = re.compile(rf"{re.escape(stem)}[\w.]+")
    found = [folder for folder in kept_bundles() if name.fullmatch(folder.name)]
    if found:
        return max(found, key=last_used)
    with needs_extra("export", "run --model"):
        from rism.export import (
            ExportOptions,
            Progress,
            TerminalProgress,
            export_bundle,
            plan_export,
        )
    options = ExportOptions(captures=(capture or "vectors",), precision=precision)
    plan = plan_export(model, bundles_folder() / "new", options)
    folder = bundles_folder() / f"{stem}{plan.revision[:12] or __version__}"
    fetched = sum(part.read_bytes for part in plan.parts) if plan.source.startswith("hub:") else 0
    console.note(
        f"{plan.table()}\ndownload     {fetched / 1e9:.1f} GB at most, less what is already here"
    )
    console.note(f"bundle       {folder}")
    plan.check(folder)
    if fetched + plan.disk_bytes > _ASK_ABOVE_BYTES and not yes:
        _ask(f"{model} needs {(fetched + plan.disk_bytes) / 1e9:.1f} GB of download and disk")
    progress = Progress() if console.quiet else TerminalProgress()
    export_bundle(model, folder, options, progress=progress)
    return folder


def _ask(what: str) -> None:
    """Ask on the terminal; anything but yes is an error."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise RismError(f"{what} and nobody can be asked here: add --yes")
    sys.stderr.write(f"{what}: go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RismError(f"{what}: declined, nothing was done")


def kept_bundles() -> list[Path]:
    """Return the folders of the bundles in the cache, by name."""
    folder = bundles_folder()
    if not folder.is_dir():
        return []
    return sorted(
        each
        for each in folder.iterdir()
        if not each.name.startswith(".") and (each / "manifest.json").is_file()
    )


def mark_used(folder: Path) -> None:
    """Note that a kept bundle was used, for `rism bundles`; other folders stay as they are."""
    if folder.parent == bundles_folder() and os.access(folder, os.W_OK):
        os.utime(folder)


def last_used(folder: Path) -> float:
    """Return when a kept bundle was last used, in seconds since 1970."""
    return folder.stat().st_mtime


def folder_size(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
