"""A dataset in memory: pictures in three colours, asked of the tiny bundle."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rism.evaluation.datasets.sample import Image, Mask, Problem, Sample
from rism.evaluation.run.records import Run
from rism.evaluation.run.runner import digest
from rism.runtime.errors import InputError

WORDS = ("red", "green", "blue")


class SmallSet:
    """Pictures with a rectangle of each colour; see `rism.evaluation.datasets.sample.Dataset`."""

    def __init__(
        self,
        pictures: int = 4,
        *,
        name: str = "small test",
        missing: Sequence[str] = (),
        broken: Sequence[str] = (),
        words: Sequence[str] = WORDS,
        absent: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.notes = name, notes
        self.problems: Sequence[Problem] = ()
        self.missing, self.broken = set(missing), set(broken)
        self.read: list[str] = []
        self.samples = [
            Sample(f"{picture}:{word}", str(picture), word, group=word)
            for picture in range(pictures)
            for word in words
        ]
        if absent:
            self.samples = [each for sample in self.samples for each in (sample, _absent(sample))]

    def run(self, **changes: Any) -> Run:
        """What is said of a run of the tiny bundle on this set."""
        return Run(
            self.name, len(self.samples), digest(self.samples), "legacy", "tiny",
            **{"bundle_digest": "0" * 64, "capture": "vectors", "provider": "cpu",
               "precision": "float32", **changes},
        )  # fmt: skip

    def image(self, sample: Sample) -> Image:
        self.read.append(sample.image)
        if sample.image in self.missing:
            raise InputError(f"image '{sample.image}.png' is not there")
        return _pixels(sample)

    def mask(self, sample: Sample) -> Mask:
        if sample.key in self.broken:
            raise InputError("its polygon has three numbers, expected pairs")
        channel = {"red": 0, "green": 1}.get(sample.expression, 2)
        return (_pixels(sample)[..., channel] > 128) & sample.present


def _pixels(sample: Sample) -> Image:
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:, :80], pixels[:, 80:] = (220, 20, 20), (20, 20, 220)
    top, left = 8 * (int(sample.image) % 7), 8 * (3 + int(sample.image) % 9)
    pixels[top : top + 32, left : left + 40] = (20, 220, 20)
    return pixels


def _absent(sample: Sample) -> Sample:
    return Sample(f"{sample.key}:absent", sample.image, "nothing", "none", present=False)
