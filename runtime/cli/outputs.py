"""Where results go and what they are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.runtime.cli.console import UsageError
from rism.runtime.errors import OutputError
from rism.runtime.render import KINDS, Kind

__all__ = ["Destination", "choose_destination", "slugs"]

STDOUT = ("-", "/dev/stdout")
_DEFAULT_KINDS: tuple[Kind, ...] = ("mask", "overlay")
_SLUG_BYTES = 60
_STEM_BYTES = 120  # with slug, kind and ".png" below the 255 bytes that file systems allow


@dataclass(frozen=True)
class Destination:
    """What one run writes.

    Attributes:
        kinds: pictures per expression; none where only JSON is wanted.
        folder: where they go under names of their own, or None.
        file: the one file they go to instead, or None.
        to_stdout: whether the one picture goes to stdout.
        with_slug: whether names tell expressions apart.
        json_file: where the results go as JSON, or None.
        json_stdout: whether they go to stdout as JSON.
    """

    kinds: tuple[Kind, ...] = ()
    folder: Path | None = None
    file: Path | None = None
    to_stdout: bool = False
    with_slug: bool = True
    json_file: Path | None = None
    json_stdout: bool = False

    @property
    def as_json(self) -> bool:
        """Whether results go anywhere as JSON."""
        return self.json_file is not None or self.json_stdout

    def path(self, stem: str, slug: str, kind: Kind) -> Path:
        """Name the file of one picture of one result."""
        if self.file is not None or self.folder is None:
            return self.file or Path(os.devnull)
        middle = f".{slug}" if self.with_slug else ""
        return self.folder / f"{_cut(stem, _STEM_BYTES)}{middle}.{kind}.png"

    def prepare(self) -> None:
        """Fail now, not after minutes of work, where nothing can be written.

        Raises:
            OutputError: a folder that is missing, cannot be made or cannot be written to.
        """
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise OutputError(f"cannot make folder {self.folder}: {reason}") from None
            _check_writable(self.folder)
        for file in (self.file, self.json_file):
            if file is not None:
                _check_writable(file if file.exists() else file.parent)


def choose_destination(
    output: str | None,
    *,
    save: str | None,
    as_json: bool,
    expressions: int,
    from_folder: bool,
) -> Destination:
    """Read -o, --save and --json together.

    Raises:
        UsageError: they do not go together; the message says what would.
    """
    chosen = None if save is None else _parse_kinds(save)
    if output is None:
        return _without_output(chosen, as_json, expressions, from_folder)
    path = Path(output)
    if output in STDOUT:
        kind = _single(chosen, expressions, from_folder, f"-o {output}")
        if as_json:
            raise UsageError(f"-o {output} and --json both want stdout: drop one of them")
        return Destination(kinds=kind, to_stdout=True)
    if path.suffix.lower() == ".json" and not path.is_dir():
        if chosen is not None:
            raise UsageError(f"-o {output} holds results only: for pictures too, -o DIR/ --json")
        return Destination(json_file=path, json_stdout=as_json)
    if from_folder or path.is_dir() or output.endswith(("/", os.sep)):
        return Destination(kinds=chosen or _DEFAULT_KINDS, folder=path, json_stdout=as_json)
    # A device such as /dev/stdout has no suffix to go by.
    is_device = path.exists() and not path.is_file()
    if path.suffix.lower() != ".png" and not is_device:
        raise UsageError(
            f"-o {output}: end it in .png for a picture, .json for results, / for a folder"
        )
    kind = _single(chosen, expressions, from_folder, f"-o {output}")
    return Destination(kinds=kind, file=path, json_stdout=as_json)


def slugs(expressions: Sequence[str]) -> list[str]:
    """Turn expressions into distinct parts of file names.

    >>> slugs(["The green van!", "the  green van"])
    ['the-green-van', 'the-green-van-2']
    """
    made: list[str] = []
    for expression in expressions:
        words = "".join(c if c.isalnum() else " " for c in expression.lower()).split()
        slug = _cut("-".join(words), _SLUG_BYTES).strip("-") or "expression"
        number, name = 1, slug
        while name in made:
            number += 1
            name = f"{slug}-{number}"
        made.append(name)
    return made


def _without_output(
    chosen: tuple[Kind, ...] | None, as_json: bool, expressions: int, from_folder: bool
) -> Destination:
    if as_json and chosen is None:
        return Destination(json_stdout=True)
    if from_folder:
        raise UsageError("a folder of pictures needs a folder for the results: add -o DIR/")
    return Destination(
        kinds=chosen or _DEFAULT_KINDS,
        folder=Path(),
        with_slug=expressions > 1,
        json_stdout=as_json,
    )


def _parse_kinds(save: str) -> tuple[Kind, ...]:
    asked = {part.strip() for part in save.split(",")}
    if asked == {"all"}:
        return KINDS
    unknown = sorted(asked.difference(KINDS))
    if unknown:
        raise UsageError(f"--save has '{unknown[0]}', expected some of {','.join(KINDS)}, or all")
    return tuple(kind for kind in KINDS if kind in asked)


def _single(
    chosen: tuple[Kind, ...] | None, expressions: int, from_folder: bool, flag: str
) -> tuple[Kind, ...]:
    """Return the one kind of picture that fits in one file."""
    kinds: tuple[Kind, ...] = chosen or ("mask",)
    if from_folder or expressions > 1 or len(kinds) > 1:
        raise UsageError(f"{flag} takes one picture, this run makes several: use -o DIR/")
    return kinds


def _check_writable(path: Path) -> None:
    if not path.exists():
        raise OutputError(f"folder {path} is not there: make it first (mkdir -p {path})")
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write to {path}: no permission, or a read-only place")


def _cut(text: str, limit_bytes: int) -> str:
    """Cut to a number of UTF-8 bytes, between characters."""
    return text.encode(errors="replace")[:limit_bytes].decode(errors="ignore")
