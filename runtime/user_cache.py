"""Files that rism keeps in folders of its user. What is read from there is not trusted."""

import contextlib
import os
import re
import stat
import sys
from pathlib import Path

from rism.runtime.errors import one_line

# A link is not followed, and a pipe is not waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)


def read_plain_file(path: Path, *, most: int) -> bytes:
    """Return a whole file of at most `most` bytes; its kind and size are checked first.

    Raises:
        OSError: it is not there, a link, or cannot be read.
        ValueError: not a plain file, too large, or changed while it was read.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a plain file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(status.st_size + 1)
    finally:
        os.close(descriptor)
    if len(data) != status.st_size:
        raise ValueError("changed while it was read")
    return data


def user_cache() -> Path:
    """Return the folder of this user's caches, as the XDG base directories or Windows have it.

    Raises:
        ValueError: nothing says where this user's home is.
    """
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise ValueError(one_line(error)) from None


def evict(folder: Path, ours: re.Pattern[str], limit: int) -> None:
    """Remove the oldest files beyond `limit` bytes in all; others may be doing the same.

    Only files whose whole name matches `ours` are ever removed.

    Raises:
        OSError: the folder cannot be listed.
    """
    entries: list[tuple[int, int, str]] = []
    with os.scandir(folder) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                if ours.fullmatch(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            Path(path).unlink()
        total -= size
