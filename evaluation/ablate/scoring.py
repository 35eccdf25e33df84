"""Scores all settings on a dataset, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.evaluation.ablate.grid import Grid, Setting
from rism.evaluation.ablate.sample_log import Records
from rism.evaluation.ablate.setting_masks import Pass, overlaps
from rism.evaluation.datasets.sample import Dataset, Problem, Progress, Sample
from rism.evaluation.metrics.iou import Overlap, Sums
from rism.runtime.errors import InputError
from rism.runtime.image.geometry import Plan

Source = Callable[[str, npt.NDArray[np.uint8], str], tuple[Plan, Iterator[Pass]]]
"""Runs a model: from the name of an image, the image and an expression to the resizing and the
passes."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    `summaries` are metrics over all samples, by setting; see `summarise`. `ious` are (samples,
    settings), in the orders of the dataset and of `grid.settings`.
    """

    grid: Grid
    summaries: dict[Setting, dict[str, float]]
    ious: npt.NDArray[np.float64]
    problems: tuple[Problem, ...]

    @property
    def count(self) -> int:
        """Number of samples that were scored."""
        return len(self.ious)

    def of(self, setting: Setting) -> npt.NDArray[np.float64]:
        """Return a setting's IoU of each sample."""
        found: npt.NDArray[np.float64] = self.ious[:, list(self.summaries).index(setting)]
        return found

    def percent(self, setting: Setting, metric: str) -> float:
        """Return a metric of a setting in percent."""
        return 100 * self.summaries[setting][metric]


def run(
    dataset: Dataset,
    grid: Grid,
    source: Source,
    *,
    file: Path,
    about: dict[str, Any],
    progress: Progress | None = None,
) -> Outcome:
    """Score the samples that the file has no records of yet, and summarise all records.

    `about` is everything else that the numbers depend on, for the file's first line; `progress` is
    called after each sample.

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
    plan, passes = source(sample.image, dataset.image(sample), sample.expression)
    return overlaps(grid, passes, plan, true_hw)


def _read_back(
    records: Records, dataset: Dataset, grid: Grid, problems: Sequence[Problem]
) -> Outcome:
    """Summarise the records of this dataset's samples."""
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
