"""Upsampling of a map on the token grid to the image: bilinear, or along the image's edges.

The guided filter (He, Sun, Tang: Guided Image Filtering, 2013, and Fast Guided Filter, 2015)
fits the score map as a linear function of colour in every window of the image, averages the fits
of all windows over a pixel, and applies the average to the pixel's colour. Fits are made on a
reduced image, and their coefficients upsampled.

How far a window reaches follows from the map's own noise: a clean map needs little help from the
image, and where many tokens are wrong only a wide window outvotes them.
"""

from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.arrays import Array, Float32, Uint8
from rism.runtime.image.geometry import Plan

# Chosen on maps with noise of scenes and of photographs; docs/quality.md.
RADIUS_PER_NOISE = 3.2  # tokens
RADIUS_TOKENS = (0.5, 2.0)  # least and most
FEW_PX = 4.0  # a reduced image of fewer pixels per token shows its edges too coarsely
REGULARISATION = 1e-4  # of colours from 0 to 1
PX_PER_TOKEN = 8  # of the reduced image
MOST_PX = 20_000  # of the reduced image; more is no better on the tuning scenes, and costs twice

_BAND = 32  # rows of the image
_ANEW = 16  # steps of a moving sum before it is computed anew
# The six different entries of a symmetric 3 x 3 matrix.
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def guided_upsample(map_hw: Float32, image_hwc: Uint8, plan: Plan) -> Float32:
    """Upsample a map on the token grid along the edges of the user's image, which `plan` is of.

    The map is (N_h, N_w) float32, the image (H, W, 3) uint8, the result (H, W) float32.
    """
    reduced_wh = _reduced(plan)
    coarse_hw = upsample(map_hw, replace(plan, size_wh=reduced_wh))
    small = Image.fromarray(image_hwc).resize(reduced_wh, Image.Resampling.BOX)
    guide_hcw = np.array(np.asarray(small).transpose(0, 2, 1), np.float32, order="C")
    guide_hcw /= np.float32(255)
    pixels = (reduced_wh[0] * reduced_wh[1] / plan.tokens) ** 0.5
    noise = noise_level(map_hw)
    tokens = min(max(RADIUS_PER_NOISE * noise, RADIUS_TOKENS[0]), RADIUS_TOKENS[1])
    fits_hcw = _fits(coarse_hw, guide_hcw, radius=max(1, round(tokens * pixels)))
    whole = (0, 0, *reduced_wh)
    back = Plan(plan.size_wh, reduced_wh, whole, (reduced_wh[1], reduced_wh[0]))
    fits_hcw[:, :3] /= np.float32(255)
    found_hw = np.empty(image_hwc.shape[:2], np.float32)
    # A few rows at a time, so that intermediate arrays stay in a core's cache.
    for start in range(0, len(found_hw), _BAND):
        rows = slice(start, start + _BAND)
        band_hw = upsample(fits_hcw[:, 3], back, rows=rows)
        for channel in range(3):
            part_hw = upsample(fits_hcw[:, channel], back, rows=rows)
            part_hw *= image_hwc[rows, :, channel]
            band_hw += part_hw
        found_hw[rows] = band_hw
    share = 1.0 if pixels >= FEW_PX else min(1.0, 0.5 + 3 * noise)
    if share < 1:
        found_hw *= np.float32(share)
        found_hw += upsample(map_hw, plan) * np.float32(1 - share)
    return found_hw


def noise_level(map_hw: Float32) -> float:
    """Standard deviation of a score map's noise, as a share of the distance of its two classes.

    The noise follows from the median size of the Laplacian, which is 0 where a map is even or
    slanted; contours are too few to count. 0 for maps of one class, or without 3 x 3 tokens.
    """
    inside = map_hw > 0
    if min(map_hw.shape) < 3 or inside.all() or not inside.any():
        return 0.0
    around = map_hw[:-2, 1:-1] + map_hw[2:, 1:-1] + map_hw[1:-1, :-2] + map_hw[1:-1, 2:]
    # A normal variable's median size is 0.6745 deviations; 20 is 4^2 + 4.
    deviation = float(np.median(np.abs(4 * map_hw[1:-1, 1:-1] - around))) / (0.6745 * 20**0.5)
    distance = float(map_hw[inside].mean() - map_hw[~inside].mean())
    return deviation / distance if distance > 0 else 0.0


def _reduced(plan: Plan) -> tuple[int, int]:
    """Return width and height of the reduced image; never more than the image's."""
    width, height = plan.size_wh
    share = min(PX_PER_TOKEN**2 * plan.tokens, MOST_PX) / (width * height)
    scale = min(1.0, share**0.5)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fits(map_hw: Float32, guide_hcw: Float32, *, radius: int) -> Float32:
    """Return the coefficients of colour and the constant, averaged over windows: (h, 4, w)."""
    # Less cancellation than with colours from 0 to 1.
    guide = guide_hcw.transpose(1, 0, 2) - np.float32(0.5)
    lines = np.empty((len(map_hw), 13, map_hw.shape[1]), np.float32)
    planes = lines.transpose(1, 0, 2)
    planes[:3], planes[3] = guide, map_hw
    np.multiply(guide, map_hw, out=planes[4:7])
    for plane, (one, other) in zip(planes[7:], _PAIRS, strict=True):
        np.multiply(guide[one], guide[other], out=plane)
    means = _box_means(lines, radius).transpose(1, 0, 2)
    colour, level, together = means[:3], means[3], means[4:7]
    rr, rg, rb, gg, gb, bb = (
        mean - colour[one] * colour[other]
        for mean, (one, other) in zip(means[7:], _PAIRS, strict=True)
    )
    rr, gg, bb = rr + REGULARISATION, gg + REGULARISATION, bb + REGULARISATION
    red, green, blue = together - colour * level
    # One symmetric 3 x 3 system for each pixel, by elimination; no pivots, as it is positive
    # definite.
    rg_r, rb_r = rg / rr, rb / rr
    gg, gb, bb = gg - rg_r * rg, gb - rg_r * rb, bb - rb_r * rb
    green, blue = green - rg_r * red, blue - rb_r * red
    gb_g = gb / gg
    fits = np.empty((len(level), 4, level.shape[1]), np.float32)
    slope = fits.transpose(1, 0, 2)
    slope[2] = (blue - gb_g * green) / (bb - gb_g * gb)
    slope[1] = green / gg - gb_g * slope[2]
    slope[0] = red / rr - rg_r * slope[1] - rb_r * slope[2]
    slope[3] = level - (slope[:3] * (colour + np.float32(0.5))).sum(axis=0)
    return _box_means(fits, radius)


def _box_means(planes: Float32, radius: int) -> Float32:
    """Return means over windows of 2 r + 1 pixels a side, cut off at the border, transposed.

    `planes` is (h, c, w), contiguous, and overwritten; the result is (w, c, h).
    """
    height, count, width = planes.shape
    down, turned = np.empty_like(planes), planes.reshape(width, count, height)
    _line_means(planes, radius, out=down)
    # Reusing memory: to allocate it costs more than the sums.
    turned[...] = down.transpose(2, 1, 0)
    means = down.reshape(turned.shape)
    _line_means(turned, radius, out=means)
    return means


def _line_means(lines: Float32, radius: int, *, out: Float32) -> None:
    """Compute means over 2 r + 1 entries of the first axis, cut off at its ends."""
    count = len(lines)
    for at in range(count):
        low, high = max(at - radius, 0), min(at + radius + 1, count)
        # A moving sum costs two additions, whatever the radius, and loses digits with time.
        if at % _ANEW == 0:
            total = lines[low:high].sum(axis=0)
        else:
            if at + radius < count:
                total += lines[at + radius]
            if at > radius:
                total -= lines[at - radius - 1]
        np.multiply(total, np.float32(1 / (high - low)), out=out[at])


_Axis: TypeAlias = tuple[npt.NDArray[np.intp], Float32]


def upsample(map_hw: Array, plan: Plan, *, rows: slice = slice(None)) -> Array:
    """Upsample a map on the token grid to the user's image: (N_h, N_w) to (H, W) float32.

    Bilinear with half-pixel centres and clamped edges. The centre of image pixel x lies at
    `(x + 0.5) * resized / size - left` of the image at the model's size, so the cut-off border of
    a crop is clamped too and takes the nearest value. Only `rows` of the image are computed.
    """
    across, (cells, shares) = _weights(plan)
    cells, shares = cells[rows], shares[rows]
    first = int(cells[0])
    map_hw = map_hw[first : int(cells[-1]) + 2]
    left, x_share, top, y_share = *across, cells - first, shares
    right = np.minimum(left + 1, map_hw.shape[1] - 1)
    # Across first: then the large array only needs whole rows blended, in place.
    wide = map_hw[:, left] * (1 - x_share) + map_hw[:, right] * x_share
    full_hw = np.take(wide, top, axis=0)
    to_next = np.take(np.diff(wide, axis=0, append=wide[-1:]), top, axis=0)
    to_next *= y_share[:, None]
    full_hw += to_next
    return full_hw


@lru_cache(maxsize=16)
def _weights(plan: Plan) -> tuple[_Axis, _Axis]:
    left, top, right, bottom = plan.crop_xyxy
    rows, columns = plan.grid_hw
    return (
        _axis(plan.size_wh[0], plan.resized_wh[0], start=left, stop=right, cells=columns),
        _axis(plan.size_wh[1], plan.resized_wh[1], start=top, stop=bottom, cells=rows),
    )


def _axis(size: int, resized: int, *, start: int, stop: int, cells: int) -> _Axis:
    """Return for each of `size` pixels the cell at or before it, and the share of the next."""
    centre = (np.arange(size) + 0.5) * (resized / size) - start
    cell = np.clip(centre * (cells / (stop - start)) - 0.5, 0.0, cells - 1.0)
    low = cell.astype(np.intp)
    return low, (cell - low).astype(np.float32)
