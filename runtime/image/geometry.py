"""From the user's image to the model's grid.

docs/bundle.md, step 2. Sizes are (width, height), arrays (height, width).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from rism.runtime.arrays import Float32, Uint8
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.errors import InputError

Resized: TypeAlias = Uint8 | Float32


@dataclass(frozen=True)
class Plan:
    """How an image is resized and cropped for the model.

    Attributes:
        size_wh: the user's image, pixels.
        resized_wh: after the resize, pixels.
        crop_xyxy: the part of the resized image that the model sees, pixels, right and bottom
            exclusive; all of it for `stretch` and for fixed sizes.
        grid_hw: rows and columns of tokens.
    """

    size_wh: tuple[int, int]
    resized_wh: tuple[int, int]
    crop_xyxy: tuple[int, int, int, int]
    grid_hw: tuple[int, int]

    @property
    def tokens(self) -> int:
        """N_v, the number of clean image tokens."""
        return self.grid_hw[0] * self.grid_hw[1]


def plan(size_wh: tuple[int, int], geometry: Geometry, *, max_tokens: int | None = None) -> Plan:
    """Return how an image of this size, in pixels, is resized and cropped.

    `max_tokens` are the rows of the bundle's noise; None for no limit.

    Raises:
        InputError: the aspect ratio exceeds `max_aspect`, or the image is too small for one token
            or makes more tokens than there is noise for.
    """
    width, height = size_wh
    aspect = max(width, height) / min(width, height)
    if aspect > geometry.max_aspect:
        raise InputError(
            f"the image is {width} x {height} pixels (aspect {aspect:.1f}), expected at most "
            f"{geometry.max_aspect:g}: crop it around the object first"
        )
    resized_wh, crop = _resized(size_wh, geometry)
    grid_hw = ((crop[3] - crop[1]) // geometry.token_px, (crop[2] - crop[0]) // geometry.token_px)
    if grid_hw[0] < 1 or grid_hw[1] < 1:
        raise InputError(
            f"the image is {width} x {height} pixels, too small for this model, expected at "
            f"least {geometry.multiple_px} pixels on each side: enlarge it first"
        )
    if max_tokens is not None and grid_hw[0] * grid_hw[1] > max_tokens:
        raise InputError(
            f"the image of {width} x {height} pixels makes {grid_hw[0]} x {grid_hw[1]} tokens, "
            f"expected at most {max_tokens} (the bundle's noise): crop it nearer to a square, "
            "or export with a smaller size"
        )
    return Plan(size_wh, resized_wh, crop, grid_hw)


def _resized(
    size_wh: tuple[int, int], geometry: Geometry
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    width, height = size_wh
    if geometry.sizes:
        w, h = _nearest(size_wh, geometry.sizes)
        return (w, h), (0, 0, w, h)
    area, level = width * height, geometry.size_level
    wide, tall = float(width), float(height)
    if geometry.resize == "always" and geometry.rounding == "ceil":
        wide, tall = _rounded_up(size_wh, level)
    elif geometry.resize == "always":
        # side * level / root, in this order: exact where the result is whole, so that a square
        # image never loses a row of tokens to the rounding of level / root.
        root = math.sqrt(area)
        wide, tall = width * level / root, height * level / root
    elif area > level * level:
        # The order of diffusers' Flux2 pipeline, to the last bit: for one square image in six it
        # gives a pixel less than the above.
        scale = math.sqrt(level * level / area)
        wide, tall = width * scale, height * scale
    multiple = geometry.multiple_px
    if geometry.remainder == "stretch":
        w = max(multiple, math.floor(wide / multiple) * multiple)
        h = max(multiple, math.floor(tall / multiple) * multiple)
        return (w, h), (0, 0, w, h)
    full_w, full_h = int(wide), int(tall)
    w, h = full_w // multiple * multiple, full_h // multiple * multiple
    left, top = (full_w - w) // 2, (full_h - h) // 2
    return (full_w, full_h), (left, top, left + w, top + h)


def _rounded_up(size_wh: tuple[int, int], level: int) -> tuple[int, int]:
    """Round the longer side up, then the shorter one that belongs to it; exact in this order."""
    width, height = size_wh
    ratio = width / height
    if width > height:
        wide = math.ceil(math.sqrt(level * level * ratio))
        return wide, math.ceil(wide / ratio)
    tall = math.ceil(math.sqrt(level * level / ratio))
    return math.ceil(tall * ratio), tall


def _nearest(size_wh: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Choose the size of the nearest aspect ratio; of equals the largest, then the first."""
    width, height = size_wh

    def far(size: tuple[int, int]) -> tuple[float, int]:
        one, other = size[0] * height, size[1] * width
        # exp |log(w / h) - log(W / H)|, without logarithms: equal ratios come out equal.
        return max(one, other) / min(one, other), -size[0] * size[1]

    return min(sizes, key=far)


def resize(image_hwc: Uint8, plan: Plan, geometry: Geometry) -> Resized:
    """Resize and no more: (H, W, 3) uint8 to (h, w, 3) of type `resize_in`, 0 to 255."""
    if plan.resized_wh == plan.size_wh:
        return image_hwc
    resample = Image.Resampling[geometry.resample.upper()]
    if geometry.resize_in == "uint8":
        return np.asarray(Image.fromarray(image_hwc).resize(plan.resized_wh, resample))
    # Planes of single precision: no channel is rounded to 8 bits on the way.
    planes = image_hwc.transpose(2, 0, 1).astype(np.float32)
    resized = [Image.fromarray(plane).resize(plan.resized_wh, resample) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def normalise(resized_hwc: Resized, plan: Plan, geometry: Geometry) -> Float32:
    """Crop and normalise what `resize` returned: (h, w, 3) to (1, 3, h, w) float32."""
    left, top, right, bottom = plan.crop_xyxy
    # One multiply-add over float32 planes: (x / 255 - mean) / std.
    rows = resized_hwc[top:bottom, left:right]
    chw = rows.transpose(2, 0, 1).astype(np.float32, order="C")
    chw /= np.float32(255.0)
    chw -= np.float32(geometry.mean)
    chw /= np.float32(geometry.std)
    return chw[None]


def positions(grid_hw: tuple[int, int]) -> Float32:
    """Row and column of each token, row-major: (N_v, 2) float32."""
    return np.indices(grid_hw, dtype=np.float32).reshape(2, -1).T.copy()
