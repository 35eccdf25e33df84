"""Which pictures the argument IMAGE means."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rism.runtime.errors import InputError
from rism.runtime.images import SUFFIXES, ImageSource
from rism.runtime.render import KINDS

__all__ = ["STDIN", "Source", "find_sources"]

STDIN = "-"
_OUR_ENDINGS = tuple(f".{kind}.png" for kind in KINDS)


@dataclass(frozen=True)
class Source:
    """One picture to read.

    Attributes:
        label: what to call it in messages and JSON.
        stem: what the names of its results begin with.
        path: where it is; None for stdin.
    """

    label: str
    stem: str
    path: Path | None

    def open(self) -> ImageSource:
        """Return something that `load_image` reads."""
        return sys.stdin.buffer if self.path is None else self.path


def find_sources(argument: str) -> list[Source]:
    """List the pictures: the one file, stdin, or those of a folder, sorted by name.

    A folder is not searched below its first level, and what `rism run` writes (names that
    end in `.mask.png` and the like) is not taken for input.

    Raises:
        InputError: the folder has no pictures, or stdin is a terminal.
    """
    if argument == STDIN:
        if sys.stdin.isatty():
            raise InputError("IMAGE is -, but stdin is a terminal: pipe a picture into it")
        return [Source("-", "stdin", None)]
    path = Path(argument)
    if not path.is_dir():
        return [Source(argument, path.stem, path)]
    try:
        found = sorted(file for file in path.iterdir() if _is_picture(file))
    except OSError as error:
        raise InputError(f"cannot list folder {path}: {error.strerror or error}") from None
    if not found:
        raise InputError(f"folder {path} has no pictures, expected names in {' '.join(SUFFIXES)}")
    return [
        Source(str(file), stem, file)
        for file, stem in zip(found, _distinct_stems(found), strict=True)
    ]


def _is_picture(file: Path) -> bool:
    name = file.name.lower()
    return (
        file.suffix.lower() in SUFFIXES
        and not name.startswith(".")
        and not name.endswith(_OUR_ENDINGS)
        and file.is_file()
    )


def _distinct_stems(files: list[Path]) -> list[str]:
    """Return the names without suffix, or with it where cat.jpg lies beside cat.png."""
    times = Counter(file.stem.casefold() for file in files)
    return [file.stem if times[file.stem.casefold()] == 1 else file.name for file in files]
