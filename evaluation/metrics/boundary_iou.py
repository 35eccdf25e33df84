"""The pixels of a mask that lie near its contour (Cheng et al. 2021, arXiv 2103.16562)."""

import math

import numpy as np

from rism.evaluation.datasets.sample import Mask


def boundary_width(shape_hw: tuple[int, int]) -> int:
    """Return the width of the boundary: 2 % of the diagonal, at least 1 pixel."""
    return max(1, round(0.02 * math.hypot(*shape_hw)))


def boundary(mask_hw: Mask, width: int) -> Mask:
    """Return the pixels of a mask within `width` of its background.

    Distances are Chebyshev's, as of `width` erosions by a 3 x 3 square. Outside the image is
    background, so a mask that is cut off by the image's edge has a contour there.

    Args:
        mask_hw: (H, W) bool.
        width: in pixels, at least 1.

    Returns:
        (H, W) bool, G_d intersected with G in the paper.
    """
    return mask_hw & ~_eroded_rows(_eroded_rows(mask_hw, width).T, width).T


def _eroded_rows(mask_hw: Mask, width: int) -> Mask:
    """Erode along the first axis: windows of 1, 2, 4, ... pixels, each from two of half its size.

    Some log2(2 width + 1) passes over the mask, however wide the window.
    """
    window = 2 * width + 1
    height = mask_hw.shape[0]
    found = np.zeros((height, mask_hw.shape[1]), np.bool_)
    if window > height:
        return found
    held, size = np.ascontiguousarray(mask_hw), 1
    while size < window:
        step = min(size, window - size)
        held = held[:-step] & held[step:]
        size += step
    found[width : height - width] = held
    return found
