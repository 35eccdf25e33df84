"""`rism refine`: the door to the refiner of rism.export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import Console, Countdown, UsageError
from rism.runtime.cli.datasets import DatasetFlags
from rism.runtime.cli.names import as_text
from rism.runtime.cli.outputs import check_outputs
from rism.runtime.cli.sources import STDIN, find_sources, sort_arguments
from rism.runtime.errors import RismError, one_line
from rism.runtime.extras import import_extra

__all__ = ["RefineFlags", "refine_to_file"]

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class RefineFlags(DatasetFlags):
    """The flags of `rism refine`; with nothing but `source` that is a dataset.

    `arguments` are those after it, images or expressions; `expressions` were given by flags.
    """

    arguments: tuple[str, ...]
    expressions: tuple[str, ...] = ()
    recursive: bool = False
    model: str
    output: Path
    template: str | None = None
    revision: str | None = None
    offline: bool = False
    max_new_tokens: int = 128
    precision: str | None = None
    provider: str = "auto"

    @property
    def asks_images(self) -> bool:
        """Whether it is about images, with expressions, and not a dataset."""
        return bool(self.arguments or self.expressions)

    def check(self) -> None:
        """Refuse flags that do not go together.

        Raises:
            UsageError: a place that is none, or flags of the other kind of source.
        """
        images = [("IMAGE", each) for each in (self.source, *self.arguments)]
        for name, value in (*images, ("-o", str(self.output))):
            if value == STDIN:
                raise UsageError(f"{name} is -, expected a file: answers are added to one")
        if not self.asks_images and not self.names_dataset:
            raise UsageError(
                f"'{one_line(self.source, limit=80)}' has no EXPRESSION after it, expected one, "
                "or a dataset with its own: refcoco, refcoco+, refcocog, scenes, FILE.jsonl or "
                "FILE.parquet"
            )
        if not self.asks_images:
            super().check()
        elif useless := self._of_datasets():
            raise UsageError(
                f"{', '.join(useless)} go with a dataset, which is asked in its own sentences: "
                "leave out EXPRESSION"
            )

    def _of_datasets(self) -> list[str]:
        """Name the flags that were given and say something of a dataset."""
        asked = {
            "--root": self.root, "--split-by": self.split_by, "--split": self.split,
            "--wording": self.wording != "raw", "--kind": self.kind != "plain",
            "--count": self.count, "--limit": self.limit,
        }  # fmt: skip
        return [name for name, value in asked.items() if value]


class _Lines:
    """What a run says of itself, on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._countdown = Countdown(console)

    def reading(self, done: int, total: int, name: str) -> None:
        self._console.progress(done, total, f"reading {name}")

    def stage(self, text: str) -> None:
        self._console.note(text)

    def step(self, done: int, total: int, name: str) -> None:
        self._countdown.step(done, total, name)

    def failed(self, text: str) -> None:
        self._console.error(text)


def refine_to_file(flags: RefineFlags, console: Console) -> None:
    """Reword the instructions of pictures, or of a dataset's samples, and write the file.

    Unreadable pictures and unusable answers are reported and counted, the others still written.

    Raises:
        UsageError: flags that do not go together.
        RismError: packages are missing, the dataset, the model or the file cannot be used, or
            something was left out.
    """
    flags.check()
    refiner = import_extra("rism.export.refiner.refine", command="refine", extra="export")
    if flags.asks_images:
        _refine_pictures(refiner, flags, console)
    else:
        _refine_dataset(refiner, flags, console)


def _refine_pictures(refiner: Any, flags: RefineFlags, console: Console) -> None:
    images, texts = sort_arguments([flags.source, *flags.arguments], flags.expressions)
    found = find_sources(images, recursive=flags.recursive)
    check_outputs([flags.output], found.files)
    for note in found.notes:
        console.note(f"note: {note}")
    report = refiner.refine_instructions(
        flags.model,
        found.files,
        [as_text(text) for text in texts],
        flags.output,
        **_settings(flags),
        progress=_Lines(console),
    )
    _say(report, flags, console)
    if report.failures:
        raise RismError(
            f"{len(report.failures)} pictures or instructions were left out, the others are in "
            f"{flags.output}"
        )


def _refine_dataset(refiner: Any, flags: RefineFlags, console: Console) -> None:
    settings = refiner.RefineSettings(**_settings(flags))
    runner = import_extra("rism.evaluation.run.runner", command="refine", extra="eval")
    check_outputs([flags.output], [Path(flags.source)])
    dataset = flags.open("refine")
    for note in dataset.notes:
        console.note(f"note: {one_line(note)}")
    asked = [
        refiner.Asked(name, partial(dataset.image, some[0]), [one.expression for one in some])
        for name, some in runner.grouped(dataset.samples).items()
    ]
    counts = f"{len(dataset.samples)} samples on {len(asked)} pictures"
    console.note(f"{one_line(dataset.name, limit=80)}: {counts}")
    report = refiner.refine_pictures(
        flags.model, asked, flags.output, settings, progress=_Lines(console)
    )
    _say(report, flags, console)
    left_out = [
        one.key for one in dataset.samples if (one.image, one.expression) in report.left_out
    ]
    _complain(dataset, left_out, flags, console)


def _complain(dataset: Any, left_out: Sequence[str], flags: RefineFlags, console: Console) -> None:
    """Name the first samples that are not in the file, and fail if there are any."""
    for problem in dataset.problems[:_NAMED]:
        console.error(f"{problem.where}: {problem.what}")
    said = []
    if left_out:
        named = ", ".join(one_line(key, limit=40) for key in left_out[:_NAMED])
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        said.append(f"{len(left_out)} of {len(dataset.samples)} samples ({named}{more})")
    if dataset.problems:
        said.append(f"{len(dataset.problems)} that could not be opened")
    if said:
        raise RismError(
            f"{' and '.join(said)} were left out, the others are in {flags.output}: mend them, "
            "and the same command asks for these only"
        )


def _say(report: Any, flags: RefineFlags, console: Console) -> None:
    console.note(f"{report.answered} answered, {report.kept} were there already -> {flags.output}")


def _settings(flags: RefineFlags) -> dict[str, Any]:
    return {
        "template": flags.template,
        "revision": flags.revision,
        "offline": flags.offline,
        "max_new_tokens": flags.max_new_tokens,
        "precision": flags.precision,
        "provider": flags.provider,
    }
