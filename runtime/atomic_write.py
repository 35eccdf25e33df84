"""Writing a file so that readers see all of it or nothing."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from rism.runtime.errors import OutputError, one_line


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy on another disk, or where there are no hard links.

    Raises:
        OSError: It cannot be copied, either.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_atomically(
    path: str | Path, data: bytes | Iterable[bytes], *, follow_links: bool = True
) -> None:
    """Write `data`, whole or in pieces, to `path`: a reader sees the old file or the new one.

    The data go to a temporary file beside the target, which then takes its name; whatever
    stops the writing (a full disk, an interrupt) also removes the temporary file. A
    symbolic link keeps pointing where it did. What is not a regular file, such as
    `/dev/stdout` or a pipe, cannot be renamed over and is written to directly.

    Without `follow_links` a file replaces a link or a pipe of that name, for places that others
    can write to.

    Raises:
        OutputError: The place is missing, full, read-only or a folder.
    """
    # Of the path as given: a link to a pipe (/dev/stdout) resolves to a name that does not exist.
    given = Path(path)
    pieces = [data] if isinstance(data, bytes) else data
    try:
        if not follow_links:
            _replace(given, pieces, None)
            return
        try:
            mode = given.stat().st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{given} is a folder")
        if mode is not None and not stat.S_ISREG(mode):
            with given.open("wb") as device:
                device.writelines(pieces)
            return
        _replace(given.resolve(), pieces, mode)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {given}: {one_line(reason)}") from error


def _replace(target: Path, pieces: Iterable[bytes], mode: int | None) -> None:
    """Write a temporary file beside `target`, with its permissions, and rename it."""
    # The name is cut so that a target name of the longest length still has a neighbour.
    temporary = target.with_name(f".{target.name[:40]}.tmp-{secrets.token_hex(6)}")
    try:
        # Inside the try: an interrupt that comes while the file is made is raised as the call
        # returns. Mode 0o666 lets the umask decide, as for any file that a program makes.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            # Some file systems only find out here that they are full.
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
