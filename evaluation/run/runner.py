"""From a dataset and a segmenter to records, picture by picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rism.evaluation.datasets.sample import Dataset, Image, Mask, Problem, Sample
from rism.evaluation.metrics.iou import overlap
from rism.evaluation.run.record_log import REPORT, RESULT, append, begin, resume
from rism.evaluation.run.records import Record, Run
from rism.runtime.errors import InputError, OutputError, one_line
from rism.runtime.method.upsampling import upsample
from rism.runtime.prompt.refiner import Refiner
from rism.runtime.result.rle import encode_rle
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import ImageState, Segmenter

__all__ = ["MAPS", "Steps", "digest", "except_grey", "grouped", "part", "score", "try_options"]

MAPS = ("CAM > 0.5", "RAM > 0.5")
"""What `Run.maps` adds: the maps that the method begins with, as masks (the paper's table 2)."""


_GREY_HWC = np.full((64, 64, 3), 128, np.uint8)


class Steps(Protocol):
    """Told how far a run is."""

    def step(self, done: int, total: int, name: str) -> None:
        """So many samples are scored, and this picture is next."""


def digest(samples: Sequence[Sample]) -> str:
    """Name samples by everything that is known of them without their pictures: SHA-256."""
    found = hashlib.sha256()
    for one in samples:
        fields = (one.key, one.image, one.expression, one.group, one.present)
        found.update(json.dumps(fields).encode() + b"\n")
    return found.hexdigest()


def grouped(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Put samples of a picture together, pictures in the order of their first samples."""
    found: dict[str, list[Sample]] = {}
    for one in samples:
        found.setdefault(one.image, []).append(one)
    return found


def part(pictures: Mapping[str, list[Sample]], shard: tuple[int, int]) -> dict[str, list[Sample]]:
    """Take every n-th picture: (2, 4) is the second of four parts."""
    index, count = shard
    return dict(list(pictures.items())[index - 1 :: count])


def score(
    dataset: Dataset,
    segmenter: Segmenter,
    run: Run,
    *,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    restart: bool = False,
    steps: Steps | None = None,
) -> list[Problem]:
    """Score what a folder's records do not have yet.

    Args:
        dataset: what is scored.
        segmenter: whom to ask.
        run: what the records are of; an earlier one that differs is refused.
        folder: where they go; made where it is missing.
        options: keyword arguments of `Segmenter.segment`.
        restart: leave out what is there.
        steps: told how far it is.

    Returns:
        A problem for each sample that could not be scored.

    Raises:
        InputError: the folder has records of another run.
        OutputError: the folder takes no files.
        ProviderError: the engine failed; what was scored before is kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder {folder}: {error.strerror or error}") from error
    pictures = part(grouped(dataset.samples), run.shard)
    if restart:
        begin(folder, run)
    done = resume(folder, run, pictures)
    total, at = sum(map(len, pictures.values())), 0
    ask = _Question(dataset, segmenter, dict(options or {}), run.maps)
    for name, group in pictures.items():
        missing = [sample for sample in group if sample.key not in done]
        if missing:
            if steps is not None:
                steps.step(at, total, name)
            for name_of in (RESULT, REPORT):  # they will be of fewer samples than there are
                (folder / name_of).unlink(missing_ok=True)
            append(folder, ask.records(missing))
        at += len(group)
    return ask.problems


def try_options(segmenter: Segmenter, options: Mapping[str, Any]) -> None:
    """Ask once about a grey picture: what no sample could be asked with fails here.

    Raises:
        InputError: an option that cannot be used.
        ProviderError: the engine failed.
    """
    segmenter.segment(_GREY_HWC, "object", **options)


def except_grey(refiner: Refiner) -> Refiner:
    """Leave the picture of `try_options` in its own words: no file has others for it."""

    def reword(instruction: str, image_hwc: Image, /) -> str:
        if np.array_equal(image_hwc, _GREY_HWC):
            return instruction
        return refiner(instruction, image_hwc)

    return reword


@dataclass
class _Question:
    """What is asked of every picture, and what went wrong so far."""

    dataset: Dataset
    segmenter: Segmenter
    options: Mapping[str, Any]
    maps: bool

    def __post_init__(self) -> None:
        self.problems: list[Problem] = []

    def records(self, samples: Sequence[Sample]) -> list[Record]:
        """Score samples of one picture; those that cannot be are added to the problems."""
        try:
            image = self.dataset.image(samples[0])
        except InputError as error:
            self.problems += [_problem(sample, error) for sample in samples]
            return []
        truths = [(s, true_hw) for s in samples if (true_hw := self._truth(s, image)) is not None]
        if not truths:
            return []
        try:
            state = self.segmenter.set_image(image)
        except InputError as error:
            self.problems += [_problem(sample, error) for sample, _ in truths]
            return []
        found = dict(self._answers(state, [sample for sample, _ in truths]))
        shared_ms = sum(state.timings_ms.values()) / len(truths)
        return [
            self._record(sample, found[sample.key], true_hw, shared_ms)
            for sample, true_hw in truths
            if sample.key in found
        ]

    def _truth(self, sample: Sample, image: Image) -> Mask | None:
        try:
            true_hw = self.dataset.mask(sample)
            if true_hw.shape != image.shape[:2]:
                raise InputError(
                    f"its mask is {true_hw.shape[1]} x {true_hw.shape[0]} pixels, its picture "
                    f"{image.shape[1]} x {image.shape[0]}"
                )
        except InputError as error:
            self.problems.append(_problem(sample, error))
            return None
        return true_hw

    def _answers(
        self, state: ImageState, samples: Sequence[Sample]
    ) -> Iterator[tuple[str, Segmentation]]:
        """Ask about all expressions at once; if one of them cannot be asked, for each alone."""
        texts = [sample.expression for sample in samples]
        try:
            found = self.segmenter.segment(state, texts, **self.options)
        except InputError as error:
            if len(samples) == 1:
                self.problems.append(_problem(samples[0], error))
                return
            for sample in samples:
                yield from self._answers(state, [sample])
            return
        for sample, result in zip(samples, found, strict=True):
            yield sample.key, result

    def _record(
        self, sample: Sample, result: Segmentation, true_hw: Mask, shared_ms: float
    ) -> Record:
        height, width = true_hw.shape
        maps = {}
        if self.maps:
            for name, map_hw in zip(MAPS, (result.coarse, result.refined), strict=True):
                maps[name] = overlap(upsample(map_hw, result.plan) > 0.5, true_hw)
        return Record(
            key=sample.key,
            image=sample.image,
            expression=sample.expression,
            group=sample.group,
            present=sample.present,
            overlap=overlap(result.mask_hw, true_hw),
            empty=not result.mask_hw.any(),
            score=result.score,
            separability=result.separability,
            concentration=result.concentration,
            agreement=result.agreement,
            confidence=result.confidence,
            reason=result.reason,
            ms=shared_ms + sum(result.timings_ms.values()),
            size_hw=(height, width),
            counts=encode_rle(result.mask_hw),
            maps=maps,
        )


def _problem(sample: Sample, error: InputError) -> Problem:
    return Problem(f"{sample.key} ({sample.image})", one_line(error))
