"""Scores a dataset with a segmenter, image by image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from rism.evaluation.datasets.sample import Dataset, Image, Mask, Problem, Progress, Sample
from rism.evaluation.metrics.iou import overlap
from rism.evaluation.run.record_log import REPORT, RESULT, append, begin, resume
from rism.evaluation.run.records import Record, Run
from rism.runtime.errors import InputError, OutputError, one_line
from rism.runtime.image_encoder import ImageState
from rism.runtime.method.upsampling import upsample
from rism.runtime.prompt.refiner import Refiner
from rism.runtime.result.rle import encode_rle
from rism.runtime.result.segmentation import Segmentation
from rism.runtime.segmenter import Segmenter

MAPS = ("CAM > 0.5", "RAM > 0.5")
"""The masks that `Run.maps` adds: the thresholded maps of the paper's table 2."""

_GREY_HWC = np.full((64, 64, 3), 128, np.uint8)


def digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 of all fields of the samples; images and masks are not read."""
    found = hashlib.sha256()
    for one in samples:
        found.update(json.dumps(astuple(one)).encode() + b"\n")
    return found.hexdigest()


def grouped(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the samples by image, images in the order of their first samples."""
    found: dict[str, list[Sample]] = {}
    for one in samples:
        found.setdefault(one.image, []).append(one)
    return found


def part(images: Mapping[str, list[Sample]], shard: tuple[int, int]) -> dict[str, list[Sample]]:
    """Return every n-th image: (2, 4) is the second of four parts."""
    index, count = shard
    return dict(list(images.items())[index - 1 :: count])


def score(
    dataset: Dataset,
    segmenter: Segmenter,
    run: Run,
    *,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> list[Problem]:
    """Score the samples that a folder, made where it is missing, has no records of yet.

    `options` are keyword arguments of `Segmenter.segment`, and `restart` deletes earlier records.
    Before each image `progress` is called with its name.

    Returns:
        A problem for each sample that could not be scored.

    Raises:
        InputError: the folder has records of another run.
        OutputError: the folder cannot be written to.
        ProviderError: the engine failed; earlier records are kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder {folder}: {error.strerror or error}") from error
    images = part(grouped(dataset.samples), run.shard)
    if restart:
        begin(folder, run)
    done = resume(folder, run, images)
    total, at = sum(map(len, images.values())), 0
    scorer = _Scorer(dataset, segmenter, options or {}, maps=run.maps)
    for name, group in images.items():
        missing = [sample for sample in group if sample.key not in done]
        if missing:
            if progress is not None:
                progress(at, total, name)
            for outdated in (RESULT, REPORT):
                (folder / outdated).unlink(missing_ok=True)
            append(folder, scorer.records(missing))
        at += len(group)
    return scorer.problems


def try_options(segmenter: Segmenter, options: Mapping[str, Any]) -> None:
    """Segment a grey image once, so that options that cannot be used fail before the run.

    Raises:
        InputError: an option that cannot be used.
        ProviderError: the engine failed.
    """
    segmenter.segment(_GREY_HWC, "object", **options)


def skip_grey_images(refiner: Refiner) -> Refiner:
    """Wrap a refiner so that it leaves the instruction of the image of `try_options` as it is."""

    def reword(instruction: str, image_hwc: Image, /) -> str:
        if np.array_equal(image_hwc, _GREY_HWC):
            return instruction
        return refiner(instruction, image_hwc)

    return reword


class _Scorer:
    """Scores the samples of one image at a time, and collects the problems."""

    def __init__(
        self, dataset: Dataset, segmenter: Segmenter, options: Mapping[str, Any], *, maps: bool
    ) -> None:
        self.dataset, self.segmenter, self.options, self.maps = dataset, segmenter, options, maps
        self.problems: list[Problem] = []

    def records(self, samples: Sequence[Sample]) -> list[Record]:
        """Score samples of one image; those that cannot be scored become problems."""
        try:
            image = self.dataset.image(samples[0])
        except InputError as error:
            return self._refuse(samples, error)
        truths = {s.key: mask for s in samples if (mask := self._truth(s, image)) is not None}
        scored = [sample for sample in samples if sample.key in truths]
        if not scored:
            return []
        try:
            state = self.segmenter.set_image(image)
        except InputError as error:
            return self._refuse(scored, error)
        shared_ms = sum(state.timings_ms.values()) / len(scored)
        return [
            self._record(sample, result, truths[sample.key], shared_ms)
            for sample, result in self._segment(state, scored)
        ]

    def _refuse(self, samples: Sequence[Sample], error: InputError) -> list[Record]:
        self.problems += [Problem(f"{s.key} ({s.image})", one_line(error)) for s in samples]
        return []

    def _truth(self, sample: Sample, image: Image) -> Mask | None:
        try:
            true_hw = self.dataset.mask(sample)
            if true_hw.shape != image.shape[:2]:
                raise InputError(
                    f"its mask is {true_hw.shape[1]} x {true_hw.shape[0]} pixels, its image "
                    f"{image.shape[1]} x {image.shape[0]}"
                )
        except InputError as error:
            self._refuse([sample], error)
            return None
        return true_hw

    def _segment(
        self, state: ImageState, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, Segmentation]]:
        """Run all expressions at once, or each alone if one of them cannot be used."""
        texts = [sample.expression for sample in samples]
        try:
            found = self.segmenter.segment(state, texts, **self.options)
        except InputError as error:
            if len(samples) == 1:
                self._refuse(samples, error)
            else:
                for sample in samples:
                    yield from self._segment(state, [sample])
        else:
            yield from zip(samples, found, strict=True)

    def _record(
        self, sample: Sample, result: Segmentation, true_hw: Mask, shared_ms: float
    ) -> Record:
        maps = zip(MAPS, (result.coarse, result.refined), strict=True) if self.maps else ()
        return Record(
            sample,
            overlap(result.mask_hw, true_hw),
            empty=not result.mask_hw.any(),
            score=result.score,
            separability=result.separability,
            concentration=result.concentration,
            agreement=result.agreement,
            confidence=result.confidence,
            reason=result.reason,
            ms=shared_ms + sum(result.timings_ms.values()),
            size_hw=(true_hw.shape[0], true_hw.shape[1]),
            counts=encode_rle(result.mask_hw),
            maps={
                name: overlap(upsample(map_hw, result.plan) > 0.5, true_hw) for name, map_hw in maps
            },
        )
