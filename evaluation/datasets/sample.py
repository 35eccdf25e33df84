"""What is scored: one expression on one picture with its true mask, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Dataset", "Image", "Mask", "Problem", "Sample"]

Image: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One sentence about one picture: the unit of every score.

    Attributes:
        key: names it within its dataset, and stays the same from run to run.
        image: names its picture within the dataset; samples of one picture stand together.
        expression: what is asked.
        group: a kind of sample that is summed up on its own too, such as the form of the
            expression; empty for none.
        present: the picture has what is asked for. If not, the true mask is empty.
    """

    key: str
    image: str
    expression: str
    group: str = ""
    present: bool = True


@dataclass(frozen=True)
class Problem:
    """Something of a dataset that cannot be scored.

    Attributes:
        where: the sample, picture or file.
        what: what is wrong with it, in one line.
    """

    where: str
    what: str


class Dataset(Protocol):
    """Samples, their pictures and their true masks."""

    @property
    def name(self) -> str:
        """Name with its split, such as "refcoco unc val"."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the scores should know, such as that partitions are mixed."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What is to be scored, in the dataset's order; samples of a picture stand together."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What was left out on opening."""

    def image(self, sample: Sample) -> Image:
        """Read a sample's picture: (H, W, 3) uint8 RGB.

        Raises:
            InputError: it is missing or no picture.
        """

    def mask(self, sample: Sample) -> Mask:
        """Decode a sample's true mask: (H, W) bool, of the picture's size.

        Raises:
            InputError: it is broken, or of another size than the picture.
        """
