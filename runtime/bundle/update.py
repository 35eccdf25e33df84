"""Changing a finished bundle: adding or removing engines, test vectors, FP8 scales.

A change is prepared in `.amending/` inside the bundle, with a journal of what it is about to
touch; replacing manifest.json is the moment from which it holds. What stops a change before or
after that moment, an error or a killed process, is undone or finished by the same `_settle`:
at once, or by whoever changes the bundle next.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rism.runtime.atomic_write import link_or_copy, write_atomically
from rism.runtime.bundle.json_reader import is_safe_name
from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.bundle.manifest_file import MAX_MANIFEST_BYTES, read_manifest_json
from rism.runtime.bundle.reader import AMENDING, BUILT_INS, is_linked
from rism.runtime.errors import BundleError, InputError, OutputError, one_line

LOCK = ".amending.lock"
PATIENCE_S = 30.0
_NO_FILES: Mapping[str, Path] = MappingProxyType({})


def update_bundle(
    folder: Path,
    change: Callable[[dict[str, Any]], None],
    *,
    files: Mapping[str, Path] = _NO_FILES,
    remove: Sequence[str] = (),
) -> None:
    """Change a bundle's manifest, and add, replace or remove files with it: all or nothing.

    Args:
        folder: the bundle.
        change: is given the parsed manifest.json, with `files` already listed, and changes it
            in place.
        files: finished temporary files on the same disk, by the names that they are to have in
            the bundle. They are moved; where the change fails, they may be gone.
        remove: names of files that the bundle is to lose; those it has not are passed over.

    Raises:
        BundleError: the folder is no bundle, or the changed manifest would not be one.
        InputError: a name leads out of the bundle, or a temporary file is not a plain file.
        OutputError: the folder cannot be written to, another command is changing it, or it is
            a built-in bundle.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise BundleError(f"bundle '{folder}' is not a folder: pass one that rism export wrote")
    expect_own_bundle(folder)
    for name in (*files, *remove):
        _check_name(folder, name)
    # Before the lock: hashing gigabytes takes its time, and nobody need wait for it.
    listed = {name: _listing(source) for name, source in files.items()}
    try:
        with _locked(folder):
            _settle(folder)
            data = read_manifest_json(folder)
            entries = data.setdefault("files", {})
            if isinstance(entries, dict):
                entries.update(listed)
                for name in set(remove) - set(files):
                    entries.pop(name, None)
            change(data)
            parse_manifest(data)
            try:
                _put(folder, data, files, remove)
            finally:
                _settle(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"bundle '{folder}' cannot be changed ({one_line(reason)}): it is as it was; expected "
            "a folder to write to, with new files on the same disk"
        ) from error


def store_file(
    folder: Path, name: str, data: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    """Add or replace one file of a bundle, and change the manifest, as `update_bundle` does."""
    # Beside the bundle's own files: on the same disk, and hidden from who opens it meanwhile.
    temporary = folder / f".{name}.tmp-{secrets.token_hex(6)}"
    try:
        write_atomically(temporary, data)
        update_bundle(folder, change, files={name: temporary})
    finally:
        temporary.unlink(missing_ok=True)


def expect_own_bundle(folder: Path) -> None:
    """Refuse to change a bundle inside the package: every program here that uses rism shares it.

    Commands call this before their work; `update_bundle` calls it in any case.

    Raises:
        OutputError: it is one of the built-in bundles.
    """
    folder = folder.resolve()
    if folder.is_relative_to(BUILT_INS.resolve()):
        raise OutputError(
            f"bundle '{folder}' is part of the installed package and is not changed: copy it "
            f"(cp -r {shlex.quote(str(folder))} my-{folder.name}) and pass my-{folder.name}"
        )


def mend_bundle(folder: Path) -> bool:
    """Undo or finish a change that was killed; tell whether there was one.

    Raises:
        BundleError: the folder is no bundle.
        OutputError: the folder cannot be written to, or another command is changing it.
    """
    folder = folder.resolve()
    if not (folder / AMENDING).exists():
        return False
    try:
        with _locked(folder):
            _settle(folder)
    except OSError as error:
        raise OutputError(
            f"bundle '{folder}' cannot be mended ({one_line(error.strerror or error)}): expected a "
            "folder to write to"
        ) from error
    return True


def _put(
    folder: Path, data: dict[str, Any], files: Mapping[str, Path], remove: Sequence[str]
) -> None:
    """Move everything to its place; `_settle` clears up after it, wherever it stopped."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    if len(text.encode()) > MAX_MANIFEST_BYTES:
        raise BundleError("manifest.json would be larger than 1 MiB: remove engines or vectors")
    place = folder / AMENDING
    place.mkdir()
    touched = [*files, *(name for name in remove if name not in files)]
    _write(place / "journal.json", json.dumps(touched))
    _write(place / "manifest.json", text)
    for at, name in enumerate(touched):
        if (folder / name).exists() and name in files:
            link_or_copy(folder / name, place / f"old-{at}")
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source.replace(folder / name)
    (place / "manifest.json").replace(folder / "manifest.json")


def _settle(folder: Path) -> None:
    """Make the files of an interrupted change agree with the manifest that there is.

    Kept files go back where the manifest still lists them, and what it does not list of what
    the change touched is removed.
    """
    place = folder / AMENDING
    if place.is_symlink():
        raise BundleError(f"bundle '{folder}': '{AMENDING}' is a link: remove it")
    if not place.is_dir():
        return
    listed = read_manifest_json(folder).get("files", {})
    for at, name in enumerate(_journal(place)):
        kept, file = place / f"old-{at}", folder / name
        entry = listed.get(name) if isinstance(listed, dict) else None
        if kept.is_file() and isinstance(entry, dict) and _listing(kept).items() <= entry.items():
            kept.replace(file)
        elif entry is None:
            file.unlink(missing_ok=True)
            for parent in list(file.relative_to(folder).parents)[:-1]:
                with contextlib.suppress(OSError):  # not empty, or not there
                    (folder / parent).rmdir()
    shutil.rmtree(place)


def _journal(place: Path) -> list[str]:
    try:
        names = json.loads((place / "journal.json").read_text())
    except (OSError, ValueError, RecursionError):
        return []  # it stopped before it touched anything
    folder = place.parent
    for name in names if isinstance(names, list) else []:
        _check_name(folder, name)
    return names if isinstance(names, list) else []


def _check_name(folder: Path, name: object) -> None:
    """Refuse a name that leads out of the bundle, by itself or through a link."""
    if not isinstance(name, str) or not is_safe_name(name) or name == "manifest.json":
        raise InputError(
            f"'{one_line(name, limit=80)}' cannot be a file of a bundle, expected a relative path "
            "(letters, digits, . _ + - @ and /) other than manifest.json"
        )
    if is_linked(folder, name):
        raise BundleError(
            f"bundle '{folder}': '{name}' is a link or behind one: copy the bundle with its files "
            "(cp -rL)"
        )


def _listing(file: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise InputError(f"'{file}' is a link or not a plain file, expected a finished file")
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            # Once the manifest names it, a power cut must not leave it empty.
            os.fsync(handle.fileno())
            return {"sha256": digest, "size": os.fstat(handle.fileno()).st_size}
    except FileNotFoundError:
        raise InputError(f"'{file}' is not there, expected a finished file") from None


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one to change a bundle; the lock goes with the process that holds it."""
    path, end = folder / LOCK, time.monotonic() + PATIENCE_S
    while True:
        with path.open("ab") as handle:
            if _try_lock(handle.fileno()) and _is_at(path, handle.fileno()):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):  # Windows removes no open file
                        path.unlink()
                return
        if time.monotonic() > end:
            raise OutputError(
                f"bundle '{folder}' is being changed by another command: wait for it to end"
            )
        time.sleep(0.05)


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open file still has its name: who held the lock before removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
