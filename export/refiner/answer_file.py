"""The file of rewritten instructions, and answers without their quotation marks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import InputError, OutputError, one_line
from rism.runtime.prompt.instruction_file import InstructionFile, Origin, RefinedInstruction

SAVE_EVERY_S = 1.0
"""How long an answer may be in memory only, for each thousand answers of a file."""
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」"}  # noqa: RUF001


class RefinedInstructionFile:
    """A file that answers are added to: written now and then, whole or not at all."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Read what the file holds by now; one that is missing holds nothing.

        Args:
            path: the file.
            origin: model and settings of this run.

        Raises:
            InputError: It is another kind of file, or of another model or other settings.
        """
        self.path = path
        self.answers = _open(path, origin)
        self._saved = time.monotonic()
        self._unsaved = False

    def add(self, entry: RefinedInstruction) -> None:
        """Add an answer, and write the file if the last time is long ago.

        Writing takes as long as the file is large, so that large ones are written less often.
        """
        self.answers.add(entry)
        self._unsaved = True
        pause = SAVE_EVERY_S * max(1.0, len(self.answers) / 1000)
        if time.monotonic() - self._saved >= pause:
            self.save()

    def save(self) -> None:
        """Write what is not on the disk yet.

        Raises:
            OutputError: The place takes it no more.
        """
        if self._unsaved:
            write_atomically(self.path, self.answers.to_json().encode())
            self._saved, self._unsaved = time.monotonic(), False


def check_output_file(output: Path) -> None:
    """Refuse now, not after minutes, a place that cannot be written.

    Raises:
        OutputError: A folder, or a folder that is missing or read-only.
    """
    if output.is_dir():
        raise OutputError(f"{output} is a folder, expected a file: add a name such as a.json")
    if not output.parent.is_dir():
        raise OutputError(f"folder {output.parent} is not there: make it, or choose another")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise OutputError(f"{output} cannot be written: choose another place with -o")


def unquote(answer: str) -> str:
    """Take off quotation marks that wrap a whole answer; others are part of it.

    `"Remove the red car."` loses them, `"A" replaces "B"` does not.
    """
    text = answer.strip()
    closing = _QUOTES.get(text[:1])
    if closing is None or len(text) < 2 or text[-1] != closing:
        return text
    inside = text[1:-1]
    # An apostrophe between letters closes nothing.
    marks = re.sub(r"(?<=\w)['\u2019](?=\w)", "", inside)
    return text if text[0] in marks or closing in marks else inside.strip()


def _open(output: Path, origin: Origin) -> InstructionFile:
    if not output.exists():
        return InstructionFile(output.name, origin)
    found = InstructionFile.open(output)
    differs = next(
        (
            f"{name} {one_line(theirs, limit=80)}, this run is by {one_line(ours, limit=80)}"
            for name, theirs, ours in _facts_of_both(found.origin, origin)
            if theirs != ours
        ),
        None,
    )
    if differs is not None:
        raise InputError(
            f"{output} has answers by {differs}: choose another file with -o, or remove it"
        )
    found.origin = origin
    return found


def _facts_of_both(found: Origin, origin: Origin) -> Iterator[tuple[str, object, object]]:
    yield "revision", found.revision, origin.revision
    for name in dict.fromkeys((*origin.refiner, *found.refiner)):
        yield name, found.refiner.get(name), origin.refiner.get(name)
