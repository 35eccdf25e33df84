"""`rism refine`: instructions reworded by a model that sees the image, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rism.cli.console import Console, Countdown, UsageError
from rism.cli.dataset_flags import KNOWN_DATASETS, DatasetFlags
from rism.cli.flags import (
    CheckpointFlags,
    ImageFlags,
    QuietFlags,
    argument,
    flags_set,
    option,
    same_named,
    template_option,
)
from rism.export.families.find import refining_models
from rism.export.names import RefinerDevice, RefinerPrecision
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import RismError, one_line

if TYPE_CHECKING:
    from rism.evaluation.datasets.sample import Dataset
    from rism.export.refiner.refine import RefineReport
    from rism.export.refiner.settings import RefineProgress, RefineSettings

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class RefineFlags(ImageFlags, DatasetFlags, CheckpointFlags, QuietFlags):
    """The flags of `rism refine`; without an expression `source` is a dataset."""

    source: str = argument(
        ...,
        metavar="IMAGE|DATASET",
        help=f"An image, or a folder of images; or, as for rism eval, {KNOWN_DATASETS}.",
    )
    arguments: list[str] | None = argument(
        None,
        metavar="EXPRESSION",
        help="What to find, one quoted text each; a dataset brings its own expressions. An "
        "existing file is one more image, as for rism run.",
    )
    model: str = option(
        ..., help=f"{', '.join(refining_models())}, a folder with its language model, or a hub id."
    )
    output: Path = option(
        ...,
        "--output",
        "-o",
        metavar="FILE",
        help="The JSON file to write; entries that it already has are kept.",
    )
    template: str | None = template_option()
    precision: RefinerPrecision | None = option(
        None, help="Precision of the model. Default: as published."
    )
    provider: RefinerDevice = option(
        "auto", help="What runs the model; auto takes CUDA if available."
    )
    max_new_tokens: int = option(128, min=1, max=2048, help="Maximum length of an answer.")

    @property
    def asks_images(self) -> bool:
        """Whether it is about images with expressions, not about a dataset."""
        return bool(self.arguments or self.expressions)

    def check(self) -> None:
        """Refuse flags that do not go together.

        Raises:
            UsageError: stdin as a file, or flags of the other kind of source.
        """
        from rism.cli.inputs import STDIN

        images = [("IMAGE", each) for each in (self.source, *(self.arguments or ()))]
        for name, value in (*images, ("-o", str(self.output))):
            if value == STDIN:
                raise UsageError(f"{name} is -, expected a file: answers are added to one")
        if not self.asks_images and not self.names_dataset:
            raise UsageError(
                f"'{one_line(self.source, limit=80)}' has no EXPRESSION after it, expected one, "
                f"or a dataset with its own: {KNOWN_DATASETS}"
            )
        if not self.asks_images:
            super().check()
        elif useless := flags_set(
            self, ("root", "split_by", "split", "wording", "kind", "count", "limit")
        ):
            raise UsageError(
                f"{', '.join(useless)} go with a dataset, which brings its own sentences: leave "
                "out EXPRESSION"
            )

    def settings(self) -> RefineSettings:
        """How the model is asked."""
        from rism.export.refiner.settings import RefineSettings

        return same_named(RefineSettings, self)


def _progress(console: Console) -> RefineProgress:
    """Show the progress of a run on the console."""
    from rism.export.refiner.settings import RefineProgress

    return RefineProgress(
        reading=lambda done, total, name: console.progress(done, total, f"reading {name}"),
        stage=console.note,
        step=Countdown(console).step,
        failed=console.error,
    )


def refine(flags: RefineFlags, console: Console) -> None:
    """Have a model reword instructions for an image: of each EXPRESSION, or of a DATASET."""
    flags.check()
    with needs_extra("export", "refine"):
        import rism.export.refiner.refine  # noqa: F401
    if flags.asks_images:
        _refine_images(flags, console)
    else:
        _refine_dataset(flags, console)


def _refine_images(flags: RefineFlags, console: Console) -> None:
    from rism.cli.file_names import as_text
    from rism.cli.inputs import find_inputs, sort_arguments
    from rism.cli.outputs import check_outputs
    from rism.export.refiner.refine import refine_images
    from rism.export.refiner.settings import ImageExpressions
    from rism.runtime.image.loading import load_image

    arguments = [flags.source, *(flags.arguments or ())]
    images, texts = sort_arguments(arguments, flags.expressions or ())
    found = find_inputs(images, recursive=flags.recursive)
    check_outputs([flags.output], found.files)
    for note in found.notes:
        console.note(f"note: {note}")
    settings = flags.settings()
    expressions = [as_text(text) for text in texts]
    asked = [
        ImageExpressions(str(file), partial(load_image, file), expressions) for file in found.files
    ]
    report = refine_images(
        flags.model, asked, flags.output, settings, strict=True, progress=_progress(console)
    )
    _say(report, flags, console)
    if report.failures:
        raise RismError(
            f"{len(report.failures)} images or instructions were left out, the others are in "
            f"{flags.output}"
        )


def _refine_dataset(flags: RefineFlags, console: Console) -> None:
    from rism.cli.outputs import check_outputs
    from rism.evaluation.run.runner import grouped
    from rism.export.refiner.refine import refine_images
    from rism.export.refiner.settings import ImageExpressions

    settings = flags.settings()
    check_outputs([flags.output], [Path(flags.source)])
    dataset = flags.open("refine")
    for note in dataset.notes:
        console.note(f"note: {one_line(note)}")
    asked = [
        ImageExpressions(name, partial(dataset.image, some[0]), [one.expression for one in some])
        for name, some in grouped(dataset.samples).items()
    ]
    counts = f"{len(dataset.samples)} samples on {len(asked)} images"
    console.note(f"{one_line(dataset.name, limit=80)}: {counts}")
    report = refine_images(flags.model, asked, flags.output, settings, progress=_progress(console))
    _say(report, flags, console)
    left_out = [
        one.key for one in dataset.samples if (one.image, one.expression) in report.left_out
    ]
    _complain(dataset, left_out, flags, console)


def _complain(
    dataset: Dataset, left_out: Sequence[str], flags: RefineFlags, console: Console
) -> None:
    """Name the first samples that are not in the file, and fail if there are any."""
    for problem in dataset.problems[:_SHOWN]:
        console.error(f"{problem.where}: {problem.what}")
    said = []
    if left_out:
        named = ", ".join(one_line(key, limit=40) for key in left_out[:_SHOWN])
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        said.append(f"{len(left_out)} of {len(dataset.samples)} samples ({named}{more})")
    if dataset.problems:
        said.append(f"{len(dataset.problems)} that could not be opened")
    if said:
        raise RismError(
            f"{' and '.join(said)} were left out, the others are in {flags.output}: correct them, "
            "then the same command asks for these only"
        )


def _say(report: RefineReport, flags: RefineFlags, console: Console) -> None:
    console.note(f"{report.answered} answered, {report.kept} were there already -> {flags.output}")
