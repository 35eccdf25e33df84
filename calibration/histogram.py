"""A histogram of the magnitudes of a tensor, filled array by array.

A bin holds the numbers whose float32 forms share their upper 16 bits after the sign: 2^8 bins for
each power of two. E4M3 has 2^3 numbers there, so a bin is rounded as its centre is.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.calibration.e4m3 import E4M3_MAX, round_trip

_SHIFT = 15
_BINS = 2**31 >> _SHIFT
_INFINITE = 0x7F800000 >> _SHIFT
# Values counted at once: their keys are held in memory beside them.
_PIECE = 2**22
_GROUP = 32


def group_width(places: int) -> int:
    """Return how many neighbouring places make a group: at most 32, and a divisor of all."""
    return math.gcd(places, _GROUP)


@dataclass(frozen=True)
class RoundingError:
    """The error of rounding a tensor to E4M3 at one scale.

    `relative` is the root mean square of the error over that of the values, `saturated` the share
    of the values beyond 448 times the scale.
    """

    relative: float
    saturated: float


@dataclass
class Histogram:
    """Magnitudes of all values that were added.

    Attributes:
        largest: the largest magnitude, exactly.
        count: how many values there were.
        unsound: how many of them were infinite or not a number; they are in no bin.
        products: the sum of x_i x_j within each group of places of the last axis, (K / G, G, G)
            for the width G of `group_width`; empty before the first.
    """

    largest: float = 0.0
    count: int = 0
    unsound: int = 0
    products: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    # Only bins that are used: a large model has hundreds of tensors.
    _used: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count the values of an array (..., K) of any float type; K is the same for all."""
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1).astype(np.float32)
        width = group_width(rows.shape[1])
        groups = rows.reshape(len(rows), -1, width).transpose(1, 2, 0)
        products = np.matmul(groups, groups.transpose(0, 2, 1)).astype(np.float64)
        self.products = products if self.products.size == 0 else self.products + products
        flat = values.reshape(-1)
        bins = np.zeros(_BINS, np.int64)
        bins[self._used] = self._counts
        for first in range(0, flat.size, _PIECE):
            magnitude = np.abs(flat[first : first + _PIECE].astype(np.float32))
            bins += np.bincount(magnitude.view(np.uint32) >> _SHIFT, minlength=_BINS)
            largest = float(magnitude.max(initial=0.0))
            if not np.isfinite(largest):
                largest = float(magnitude[np.isfinite(magnitude)].max(initial=0.0))
            self.largest = max(self.largest, largest)
        self.count += flat.size
        self.unsound += int(bins[_INFINITE:].sum())
        self._used = np.flatnonzero(bins[:_INFINITE])
        self._counts = bins[self._used]

    def percentile(self, percent: float) -> float:
        """Return the magnitude that `percent` of all values do not exceed, at most 2^-8 too high.

        Args:
            percent: above 0, at most 100.
        """
        if percent >= 100 or not self._used.size:
            return self.largest
        below = np.cumsum(self._counts)
        at = int(np.searchsorted(below, percent / 100 * int(below[-1])))
        return min(self.largest, float(_floats(self._used[at : at + 1] + 1)[0]))

    def error(self, scale: float) -> RoundingError:
        """Return the error of rounding the values to E4M3 at a scale."""
        weights = self._counts.astype(np.float64)
        centres = np.minimum(_floats(self._used, half=True), np.float32(self.largest))
        with np.errstate(over="ignore"):
            rounded = round_trip(centres, scale).astype(np.float64)
        exact = centres.astype(np.float64)
        power = float(weights @ exact**2)
        noise = float(weights @ (rounded - exact) ** 2)
        # Scales are float32: a value scaled to 448 may exceed it by a rounding error.
        beyond = float(weights @ (exact > E4M3_MAX * scale * (1 + 1e-6)))
        total = max(float(weights.sum()), 1.0)
        return RoundingError(float(np.sqrt(noise / power)) if power else 0.0, beyond / total)


def _floats(bins: npt.NDArray[np.int64], *, half: bool = False) -> npt.NDArray[np.float32]:
    """Return where bins begin, or their centres."""
    keys = (bins.astype(np.uint32) << _SHIFT) + np.uint32((1 << (_SHIFT - 1)) if half else 0)
    return keys.view(np.float32)
