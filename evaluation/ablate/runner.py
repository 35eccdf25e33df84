"""Walking through a dataset, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rism.evaluation.ablate.grid import Grid, Setting
from rism.evaluation.ablate.masks import Captured, overlaps
from rism.evaluation.ablate.records import Records
from rism.evaluation.datasets.sample import Dataset, Problem, Sample
from rism.evaluation.metrics.iou import Overlap, Sums
from rism.runtime.errors import InputError
from rism.runtime.image.geometry import Plan

__all__ = ["Answer", "Outcome", "Source", "run"]


@dataclass(frozen=True)
class Answer:
    """One sample on its way: how its picture was brought to the model, and its passes."""

    plan: Plan
    passes: Iterator[Captured]


Source = Callable[[str, npt.NDArray[np.uint8], str], Answer]
"""From a picture's name, the picture and an expression to an `Answer`."""


class Progress(Protocol):
    """Told of each sample that is done."""

    def __call__(self, done: int, total: int, name: str) -> None:
        """Say how many of how many."""


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        grid: the settings.
        summaries: metrics over all samples, by setting; see `summarise`.
        ious: (samples, settings), in the orders of the dataset and of `grid.settings`.
        problems: of the samples that could not be scored.
    """

    grid: Grid
    summaries: dict[Setting, dict[str, float]]
    ious: npt.NDArray[np.float64]
    problems: tuple[Problem, ...]

    @property
    def count(self) -> int:
        """How many samples were scored."""
        return len(self.ious)

    def of(self, setting: Setting) -> npt.NDArray[np.float64]:
        """Return a setting's IoU of each sample."""
        found: npt.NDArray[np.float64] = self.ious[:, list(self.summaries).index(setting)]
        return found


def run(
    dataset: Dataset,
    grid: Grid,
    source: Source,
    *,
    file: Path,
    about: dict[str, Any],
    progress: Progress | None = None,
) -> Outcome:
    """Score every sample that the file does not have yet, and read all of them back.

    Args:
        dataset: what is scored.
        grid: the settings.
        source: the model.
        file: where samples are recorded; a run that was cut off goes on there.
        about: what else decides the numbers, for the file's first line.
        progress: told of each sample.

    Raises:
        InputError: the file is of another run.
        OutputError: it cannot be written.
    """
    settings = grid.settings
    records = Records(file, {"dataset": dataset.name, **about}, [str(each) for each in settings])
    done = {key for key, _ in records}
    problems = list(dataset.problems)
    total = len(dataset.samples)
    for place, sample in enumerate(dataset.samples, 1):
        if sample.key not in done:
            try:
                found = _score(dataset, sample, grid, source)
            except InputError as error:
                problems.append(Problem(sample.key, str(error)))
                continue
            records.add(sample.key, sample.group, [found[setting] for setting in settings])
        if progress is not None:
            progress(place, total, dataset.name)
    return _read_back(records, dataset, grid, problems)


def _score(dataset: Dataset, sample: Sample, grid: Grid, source: Source) -> dict[Setting, Overlap]:
    true_hw = dataset.mask(sample)
    answer = source(sample.image, dataset.image(sample), sample.expression)
    return overlaps(grid, answer.passes, answer.plan, true_hw)


def _read_back(
    records: Records, dataset: Dataset, grid: Grid, problems: Sequence[Problem]
) -> Outcome:
    """Sum up what is in the file of this dataset's samples."""
    settings = grid.settings
    place = {sample.key: at for at, sample in enumerate(dataset.samples)}
    sums = [Sums() for _ in settings]
    ious: dict[int, npt.NDArray[np.float64]] = {}
    for key, row in records:
        if key in place and place[key] not in ious:
            ious[place[key]] = np.array([each.iou for each in row])
            for total, each in zip(sums, row, strict=True):
                total.add(each)
    return Outcome(
        grid,
        {setting: total.summary() for setting, total in zip(settings, sums, strict=True)},
        np.stack([ious[at] for at in sorted(ious)]) if ious else np.zeros((0, len(settings))),
        tuple(problems),
    )
