"""Upsampling with the picture as a guide: contours along its edges instead of the token grid's.

The guided filter (He, Sun, Tang: Guided Image Filtering, 2013, and Fast Guided Filter, 2015):
in every window of the picture the score map is fitted as a linear function of colour, the fits
of all windows over a pixel are averaged, and the pixel's own colour is put into that. Fits are
made on a reduced picture, their coefficients brought to its size.
"""

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.geometry import Plan, upsample

__all__ = ["guided_upsample"]

Float32: TypeAlias = npt.NDArray[np.float32]

# Chosen on the tuning split of drawn scenes; docs/quality.md.
RADIUS_TOKENS = 1.0
REGULARISATION = 1e-4  # of colours from 0 to 1
PX_PER_TOKEN = 8  # of the reduced picture
MOST_PX = 40_000

# Rows and columns of the six different entries of a symmetric 3 x 3 matrix.
_FIRST, _SECOND = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]


def guided_upsample(map_hw: Float32, image_hwc: npt.NDArray[np.uint8], plan: Plan) -> Float32:
    """Bring a map on the token grid to the user's picture, along the picture's edges.

    Args:
        map_hw: (N_h, N_w) float32.
        image_hwc: (H, W, 3) uint8, the picture that `plan` is of.
        plan: how the picture was brought to the model's grid.

    Returns:
        (H, W) float32.
    """
    reduced_wh = _reduced(plan)
    coarse_hw = upsample(map_hw, replace(plan, size_wh=reduced_wh))
    small = Image.fromarray(image_hwc).resize(reduced_wh, Image.Resampling.BOX)
    guide = np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(255)
    pixels = (reduced_wh[0] * reduced_wh[1] / plan.tokens) ** 0.5
    fits = _fits(coarse_hw, guide, radius=max(1, round(RADIUS_TOKENS * pixels)))
    red, green, blue, constant = (_enlarged(fit, plan.size_wh) for fit in fits)
    # In place: each of these is as large as the picture.
    for fit, channel in ((red, 0), (green, 1), (blue, 2)):
        fit *= image_hwc[..., channel]
        fit /= np.float32(255)
        constant += fit
    return constant


def _reduced(plan: Plan) -> tuple[int, int]:
    """Width and height that the fits are made at; never more than the picture's."""
    width, height = plan.size_wh
    share = min(PX_PER_TOKEN**2 * plan.tokens, MOST_PX) / (width * height)
    scale = min(1.0, share**0.5)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fits(map_hw: Float32, guide: Float32, *, radius: int) -> Float32:
    """Coefficients of colour and the constant, averaged over windows: (4, h, w)."""
    means = _box_means(
        np.concatenate([guide, map_hw[None], guide * map_hw, guide[_FIRST] * guide[_SECOND]]),
        radius,
    )
    colour, level, together, squares = means[:3], means[3], means[4:7], means[7:]
    rr, rg, rb, gg, gb, bb = squares - colour[_FIRST] * colour[_SECOND]
    rr, gg, bb = rr + REGULARISATION, gg + REGULARISATION, bb + REGULARISATION
    red, green, blue = together - colour * level
    # Cramer's rule: one 3 x 3 system for each pixel.
    a, b, c = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    d, e, f = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    slope = np.stack(
        [
            a * red + b * green + c * blue,
            b * red + d * green + e * blue,
            c * red + e * green + f * blue,
        ]
    )
    slope /= rr * a + rg * b + rb * c
    constant = level - (slope * colour).sum(axis=0)
    return _box_means(np.concatenate([slope, constant[None]]), radius)


def _box_means(planes: Float32, radius: int) -> Float32:
    """Means over windows of 2 r + 1 pixels a side, cut off at the border: (c, h, w)."""
    for axis in (1, 2):
        count = planes.shape[axis]
        at = np.arange(count)
        high, low = np.minimum(at + radius + 1, count), np.maximum(at - radius, 0)
        # In double precision: single loses digits where long sums are subtracted.
        sums = np.cumsum(planes, axis=axis, dtype=np.float64)
        sums = np.insert(sums, 0, 0.0, axis=axis)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        spread = sums.take(high, axis=axis) - sums.take(low, axis=axis)
        planes = (spread / (high - low).reshape(shape)).astype(np.float32)
    return planes


def _enlarged(plane: Float32, size_wh: tuple[int, int]) -> Float32:
    """Bilinear, with half-pixel centres: (h, w) to (H, W) float32, writable."""
    return np.array(Image.fromarray(plane).resize(size_wh, Image.Resampling.BILINEAR))
