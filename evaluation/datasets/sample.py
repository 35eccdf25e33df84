"""A sample, one expression on one image with its true mask, and the datasets of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the samples done, their total, and the name of what they are from."""


@dataclass(frozen=True)
class Sample:
    """One expression for one image: the unit of every score.

    Attributes:
        key: identifies it within its dataset, the same in every run.
        image: identifies its image within the dataset; samples of one image stand together.
        expression: the referring expression.
        group: samples of a group, such as a form of expression, are also summarised on their own;
            empty for none.
        present: whether the object is in the image. If not, the true mask is empty.
    """

    key: str
    image: str
    expression: str
    group: str = ""
    present: bool = True


@dataclass(frozen=True)
class Problem:
    """A part of a dataset (sample, image or file) that cannot be scored, and why, in one line."""

    where: str
    what: str


class Dataset(Protocol):
    """Samples with their images and true masks."""

    @property
    def name(self) -> str:
        """Name with its split, such as "refcoco unc val"."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks for readers of the scores, such as that partitions are mixed."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples, in the dataset's order; samples of an image stand together."""

    @property
    def problems(self) -> Sequence[Problem]:
        """The parts of the dataset that were left out on opening."""

    def image(self, sample: Sample) -> Image:
        """Read a sample's image: (H, W, 3) uint8 RGB.

        Raises:
            InputError: it is missing or not an image.
        """

    def mask(self, sample: Sample) -> Mask:
        """Decode a sample's true mask: (H, W) bool, of the image's size.

        Raises:
            InputError: it is damaged, or of another size than the image.
        """
