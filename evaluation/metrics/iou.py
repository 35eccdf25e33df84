"""IoU and boundary IoU of masks, and their summary over samples.

One sample per sentence, at the size of the image. mIoU is the mean over samples, oIoU the sum of
intersections over the sum of unions, P@X the share of samples with an IoU of at least X; where a
union is empty, the IoU is 0.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rism.evaluation.datasets.sample import Mask
from rism.evaluation.metrics.boundary_iou import boundary, boundary_width
from rism.runtime.errors import InputError

BARS = (0.5, 0.6, 0.7, 0.8, 0.9)
_Z95 = 1.959964
METRICS = ("mIoU", "oIoU", *(f"P@{bar}" for bar in BARS), "boundary IoU")


@dataclass(frozen=True)
class Overlap:
    """Intersections and unions of two masks and of what lies near their contours, in pixels."""

    intersection: int
    union: int
    boundary_intersection: int
    boundary_union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where the union is empty."""
        return self.intersection / self.union if self.union else 0.0

    @property
    def boundary_iou(self) -> float:
        """IoU of the pixels near the contours."""
        return self.boundary_intersection / self.boundary_union if self.boundary_union else 0.0


class Sums:
    """Metrics of any number of samples, which are not kept in memory."""

    def __init__(self) -> None:
        self.count = 0
        self._intersection = self._union = 0
        self._ious: list[float] = []
        self._boundary_ious: list[float] = []
        self._reached = [0] * len(BARS)

    def add(self, one: Overlap) -> None:
        """Count one sample."""
        self.count += 1
        self._intersection += one.intersection
        self._union += one.union
        _gather(self._ious, one.iou)
        _gather(self._boundary_ious, one.boundary_iou)
        for at, bar in enumerate(BARS):
            self._reached[at] += one.iou >= bar

    def summary(self) -> dict[str, float]:
        """Return the same as `summarise`."""
        if not self.count:
            return {"n": 0}
        return {
            "n": self.count,
            "mIoU": math.fsum(self._ious) / self.count,
            "oIoU": self._intersection / self._union if self._union else 0.0,
            **{
                f"P@{bar}": reached / self.count
                for bar, reached in zip(BARS, self._reached, strict=True)
            },
            "boundary IoU": math.fsum(self._boundary_ious) / self.count,
        }


def overlap(found_hw: Mask, true_hw: Mask) -> Overlap:
    """Compare two masks, (H, W) bool.

    Raises:
        InputError: they are of different sizes.
    """
    if found_hw.shape != true_hw.shape:
        raise InputError(
            f"a mask of {found_hw.shape[1]} x {found_hw.shape[0]} pixels cannot be compared with "
            f"a true one of {true_hw.shape[1]} x {true_hw.shape[0]}, expected the same size"
        )
    width = boundary_width((found_hw.shape[0], found_hw.shape[1]))
    found_edge, true_edge = boundary(found_hw, width), boundary(true_hw, width)
    return Overlap(*_counts(found_hw, true_hw), *_counts(found_edge, true_edge))


def summarise(overlaps: Iterable[Overlap]) -> dict[str, float]:
    """Return "n", "mIoU", "oIoU", "P@0.5" to "P@0.9" and "boundary IoU" (a mean); shares 0 to 1.

    Without samples there is only "n".
    """
    sums = Sums()
    for one in overlaps:
        sums.add(one)
    return sums.summary()


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the area under the receiver operating characteristic, from ranks (Mann-Whitney's U).

    It is the share of pairs in which the positive has the higher score, ties counting half.

    Raises:
        InputError: one of the lists is empty.
    """
    if not len(positive) or not len(negative):
        raise InputError("an AUROC needs scores of both classes")
    scores = np.asarray([*positive, *negative], np.float64)
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their ranks.
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = len(positive)
    wins = float(ranks[:n].sum()) - n * (n + 1) / 2
    return wins / (n * len(negative))


def _counts(one: Mask, other: Mask) -> tuple[int, int]:
    """Return the pixels in both masks, and in either."""
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one | other))


def _gather(partials: list[float], value: float) -> None:
    """Add a number to an exact sum (Shewchuk's, as in math.fsum)."""
    kept = 0
    for partial in partials:
        large, small = (value, partial) if abs(value) >= abs(partial) else (partial, value)
        value = large + small
        lost = small - (value - large)
        if lost:
            partials[kept] = lost
            kept += 1
    partials[kept:] = [value]


def paired(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean difference of IoUs of the same samples, and half of its 95 % interval."""
    differences = one - other
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return float(differences.mean()), _Z95 * error
