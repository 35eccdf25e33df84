"""Masks as polygons: along the edges of pixels, simplified, with their holes."""

from itertools import pairwise

import numpy as np

from rism.runtime.arrays import BoolArray, Float32
from rism.runtime.distribution import install_hint
from rism.runtime.errors import RismError
from rism.runtime.names import EPSILON

INSIDE_PIXEL = 0.25
"""Added to `pixel_polygons` where coordinates are no whole numbers: readers that round and those
that cut off then find the same pixel."""

_MOST_PAIRS = 30_000_000  # of points, compared to join rings; a second


def polygons(mask_hw: BoolArray, *, epsilon: float = EPSILON) -> list[list[Float32]]:
    """Return a mask (H, W) bool as polygons, as GeoJSON's MultiPolygon nests them.

    Outlines pass through the middles of the edges between pixels (marching squares, by contourpy),
    where (0, 0) is the upper left corner of the image; then Douglas and Peucker's algorithm leaves
    out points.

    Args:
        mask_hw: the mask.
        epsilon: how far an outline may be from where it was, pixels; 0 for all its points.

    Returns:
        For each part of the mask its outline and those of its holes, each (n, 2) float32 of x and
        y, n >= 3, without the first point again.

    Raises:
        RismError: contourpy is not installed.
    """
    try:
        from contourpy import FillType, contour_generator
    except ImportError:
        raise RismError(f"polygons need contourpy: {install_hint('formats')}") from None
    generator = contour_generator(
        z=np.pad(mask_hw, 1).astype(np.float32), fill_type=FillType.OuterOffset
    )
    parts = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        rings = [points[a : b - 1] - 0.5 for a, b in pairwise(offsets)]
        parts.append([_simplified(ring, epsilon) for ring in rings])
    return parts


def without_holes(part: list[Float32]) -> Float32:
    """Join an outline with its holes to one ring, (n, 2), for formats that know no holes.

    A hole is reached by a bridge of no width, from a near point of the ring and back. Parts that
    lie side by side are joined as well.
    """
    ring, *others = part
    for other in others:
        # Of many and long rings not all points are compared.
        skip = int(np.sqrt(len(ring) * len(other) * len(others) / _MOST_PAIRS)) + 1
        apart = ((ring[::skip, None] - other[None, ::skip]) ** 2).sum(-1)
        here, there = skip * np.array(np.unravel_index(int(apart.argmin()), apart.shape))
        turn = np.concatenate([other[there:], other[: there + 1]])
        ring = np.concatenate([ring[: here + 1], turn, ring[here:]])
    return ring


def pixel_polygons(mask_hw: BoolArray, *, epsilon: float = EPSILON) -> list[list[Float32]]:
    """Return the polygons of a mask through the pixels along its edge, as OpenCV and Pillow draw.

    They colour the pixels that an outline passes through, too: `polygons` would be drawn half a
    pixel too large. A point (x, y) is the pixel of that column and row.

    Returns:
        As `polygons`, of whole numbers.
    """
    return [
        [_pixels(ring, mask_hw) for ring in part] for part in polygons(mask_hw, epsilon=epsilon)
    ]


def _pixels(ring: Float32, mask_hw: BoolArray) -> Float32:
    """Move points (n, 2) from the edges between two pixels to that of the two in the mask."""
    height, width = mask_hw.shape
    after = np.floor(ring).astype(np.int64)
    before = np.ceil(ring).astype(np.int64) - 1  # differs from `after` across the edge only
    x, y = after.T
    inside = (x < width) & (y < height)
    inside[inside] = mask_hw[y[inside], x[inside]]
    moved = np.where(inside[:, None], after, before).astype(np.float32)
    kept = moved[(moved != np.roll(moved, 1, axis=0)).any(axis=1)]
    return kept if len(kept) >= 3 else moved


def _simplified(ring: Float32, epsilon: float) -> Float32:
    """Leave out points of a closed ring (n, 2) that are within `epsilon` of what remains."""
    ring = np.asarray(ring, np.float32)
    # The two halves between the first point and the one that is farthest from it.
    far = int(((ring - ring[0]) ** 2).sum(-1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far, len(ring)]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        (x, y), inner = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        length = float(np.hypot(x, y))
        away = np.hypot(*inner.T) if length == 0 else np.abs(inner @ (-y, x)) / length
        most = int(away.argmax())
        if away[most] > epsilon:
            middle = first + 1 + most
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    found = closed[:-1][kept[:-1]]
    return found if len(found) >= 3 else ring  # a few pixels
