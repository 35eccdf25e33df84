"""`rism refine`: the door to the refiner of rism.export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import Console, UsageError
from rism.runtime.cli.extras import import_extra
from rism.runtime.cli.sources import STDIN, find_sources
from rism.runtime.errors import RismError

__all__ = ["RefineFlags", "refine_to_file"]


@dataclass(frozen=True)
class RefineFlags:
    """The flags of `rism refine`."""

    image: str
    expressions: tuple[str, ...]
    model: str
    output: Path
    template: str | None = None
    revision: str | None = None
    offline: bool = False
    max_new_tokens: int = 128
    precision: str | None = None
    provider: str = "auto"


class _Lines:
    """What a run says of itself, on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, text: str) -> None:
        self._console.note(text)

    def step(self, done: int, total: int, name: str) -> None:
        self._console.progress(done, total, name)

    def failed(self, text: str) -> None:
        self._console.error(text)


def refine_to_file(flags: RefineFlags, console: Console) -> None:
    """Reword the instructions of the pictures that IMAGE means, and write the file.

    Unreadable pictures of a folder and unusable answers are reported and counted, the others
    still written.

    Raises:
        UsageError: flags that do not go together.
        RismError: the exporter's packages are missing, the model or the file cannot be used, or
            something was left out.
    """
    for name, value in (("IMAGE", flags.image), ("-o", str(flags.output))):
        if value == STDIN:
            raise UsageError(f"{name} is -, expected a file: answers are added to one, by picture")
    images = [source.path for source in find_sources(flags.image)]
    report = _refiner().refine_instructions(
        flags.model,
        images,
        flags.expressions,
        flags.output,
        template=flags.template,
        revision=flags.revision,
        offline=flags.offline,
        max_new_tokens=flags.max_new_tokens,
        precision=flags.precision,
        provider=flags.provider,
        progress=_Lines(console),
    )
    console.note(f"{report.answered} answered, {report.kept} were there already -> {flags.output}")
    if report.failures:
        raise RismError(
            f"{len(report.failures)} pictures or instructions were left out, the others are in "
            f"{flags.output}"
        )


def _refiner() -> Any:
    return import_extra("rism.export.refine", command="refine", extra="export")
