"""Bundles in this user's cache: `rism run --model`, `rism bundles`, `rism push`."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from rism import __version__
from rism.runtime.bundle.hub import bundles_folder, import_hub
from rism.runtime.bundle.manifest_file import read_manifest_json
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.errors import InputError, OutputError, RismError, one_line
from rism.runtime.extras import import_extra

__all__ = ["exported_bundle", "list_bundles", "mark_used", "push_bundle", "remove_bundle"]

_ASK_ABOVE = 1_000_000_000
# What these say in a model card or a manifest lets anybody pass copies on.
_FREE = re.compile(r"apache|mit\b|bsd|cc0|cc-by(?!-n)|public domain", re.IGNORECASE)


def exported_bundle(
    model: str, *, precision: str | None, capture: str | None, yes: bool, console: Console
) -> Path:
    """Return a published model's bundle from the cache, exported there if this is the first time.

    Args:
        model: as `rism export --model` has it, but no file or folder.
        precision: as of `rism export`; None for the published one.
        capture: likewise; None for "vectors".
        yes: do not ask before gigabytes.
        console: told of the plan and of progress.

    Raises:
        UsageError: the model is a folder or a file.
        RismError: the answer was no, nobody can be asked, or the export failed.
    """
    path = model.startswith((".", os.sep)) or (os.sep in model and Path(model).is_dir())
    if path or model.endswith(".safetensors"):
        raise UsageError(
            f"--model {model} is on this disk, expected a published model's name or hub id: "
            "rism export --model ... -o DIR, then --bundle DIR"
        )
    stem = f"{model.replace('/', '--')}-{precision or 'published'}-{capture or 'vectors'}-"
    # A bundle that is here is used without PyTorch and without asking the hub for a newer one.
    found = [folder for folder in _kept() if re.fullmatch(rf"{re.escape(stem)}[\w.]+", folder.name)]
    if found:
        return max(found, key=_used)
    import_extra("rism.export.exporter", command="run --model", extra="export")
    exporter = import_module("rism.export")
    options = exporter.ExportOptions(captures=(capture or "vectors",), precision=precision)
    plan = exporter.plan_export(model, bundles_folder() / "new", options)
    folder = bundles_folder() / f"{stem}{plan.revision[:12] or __version__}"
    fetched = sum(part.read_bytes for part in plan.parts) if plan.source.startswith("hub:") else 0
    console.note(
        f"{plan.table()}\ndownload     {fetched / 1e9:.1f} GB at most, what is not here yet"
    )
    console.note(f"bundle       {folder}")
    plan.check(folder)
    if fetched + plan.disk_bytes > _ASK_ABOVE and not yes:
        _ask(f"{model} needs {(fetched + plan.disk_bytes) / 1e9:.1f} GB of download and disk")
    progress = exporter.Progress() if console.quiet else exporter.TerminalProgress()
    exporter.export_bundle(model, folder, options, progress=progress)
    return folder


def _ask(what: str) -> None:
    """Ask on the terminal.

    Raises:
        RismError: the answer was no, or there is nobody to ask.
    """
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise RismError(f"{what} and nobody can be asked here: add --yes")
    sys.stderr.write(f"{what}: go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RismError(f"{what}: not wanted, nothing was done")


def list_bundles() -> None:
    """Print a line for each kept bundle: name, size, when it was last used, where."""
    rows = [
        f"{folder.name:<48} {_size(folder) / 1e9:>8.2f} GB  "
        f"{datetime.fromtimestamp(_used(folder)):%Y-%m-%d %H:%M}  {folder}\n"
        for folder in _kept()
    ]
    write_stdout("".join(rows) or f"no bundles in {bundles_folder()}\n")


def remove_bundle(name: str) -> None:
    """Remove a kept bundle by its name.

    Raises:
        InputError: there is none.
        OutputError: it cannot be removed.
    """
    folder = next((folder for folder in _kept() if folder.name == name), None)
    if folder is None:
        raise InputError(
            f"no bundle '{one_line(name)}' in {bundles_folder()}: rism bundles lists them"
        )
    # Under another name first: what is left of an interrupted removal is no bundle.
    gone = folder.with_name(f".{folder.name}.removed")
    try:
        folder.replace(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed: {error.strerror or error}") from None


def _kept() -> list[Path]:
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


def _used(folder: Path) -> float:
    return folder.stat().st_mtime


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def push_bundle(
    bundle: str, repository: str, *, private: bool, any_licence: bool, console: Console
) -> None:
    """Upload a bundle's listed files and a model card to the hub.

    Raises:
        BundleError: it is damaged, or huggingface_hub is missing.
        RismError: its licence may forbid it, or the hub refuses.
    """
    hub = import_hub("rism push")
    opened = Bundle.open(resolve_bundle(bundle), verify=True)
    licence = opened.manifest.model.licence
    if not _FREE.search(licence) and not (private or any_licence):
        raise RismError(
            f"the bundle's weights are under '{one_line(licence, limit=80)}', which may forbid to "
            "pass them on: read it, then add --licence-allows, or --private for yourself"
        )
    console.note(f"uploading {_size(opened.path) / 1e9:.2f} GB to {repository}")
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:  # it was there before
            raise RismError(f"{repository} is there and public: choose another name")
        api.upload_file(
            path_or_fileobj="".join(_card(opened, repository)).encode(),
            path_in_repo="README.md",
            repo_id=repository,
        )
        found = api.upload_folder(
            repo_id=repository,
            folder_path=opened.path,
            allow_patterns=["manifest.json", *opened.manifest.files],
            commit_message=f"Upload the bundle {opened.digest[:12]}",
        )
    except RismError:
        raise
    except Exception as error:  # the hub raises a dozen kinds, from three libraries
        raise RismError(
            f"{repository} cannot be written on the model hub ({type(error).__name__}: "
            f"{one_line(error, limit=160)}): log in with hf auth login, check the name"
        ) from None
    console.note(f"uploaded; use it with --bundle {repository}@{_commit(found)}")


def _commit(found: Any) -> str:
    return str(getattr(found, "oid", "") or "main")


def _card(bundle: Bundle, repository: str) -> Iterator[str]:
    """A model card that says what the bundle is, and where its weights are from."""
    model = bundle.manifest.model
    source = read_manifest_json(bundle.path).get("model", {})
    yield "---\nlibrary_name: rism\npipeline_tag: image-segmentation\n---\n"
    yield f"# {one_line(model.name)}, a bundle for rism\n\n"
    yield f"    rism run IMAGE EXPRESSION --bundle {repository}\n\n"
    yield f"- licence of the weights: {one_line(model.licence)}\n"
    for key in ("source", "revision", "family"):
        if isinstance(source, dict) and source.get(key):
            yield f"- {key}: {one_line(source[key])}\n"
    yield f"- computes in {bundle.manifest.precision.compute}\n"
    yield f"- SHA-256 of manifest.json, which lists those of all files: {bundle.digest}\n"
