"""Views and patches of an image for a text encoder with vision (docs/bundle.md, step 4).

Sizes are (width, height), arrays (height, width). Every step resizes 8-bit pixels exactly as the
processors do that such encoders are published with.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.arrays import Float32, Int64, Uint8
from rism.runtime.bundle.prompt_spec import VisionRules
from rism.runtime.errors import BundleError, InputError

Float64: TypeAlias = npt.NDArray[np.float64]

# Limits of the step to the nearest multiples, in merged patches.
ALIGN_FEWEST, ALIGN_MOST = 4, 16384
MAX_ASPECT = 200
# Upper bounds for views and patches, whatever limits a bundle sets.
MAX_VIEW_PIXELS = 2**24
MAX_PATCH_PIXELS = 2**25


@dataclass(frozen=True, eq=False)
class View:
    """An image at the text encoder's size, and its rows and columns of patches.

    It is (h, w, 3) uint8, read-only; its sides are multiples of a merged patch.
    """

    image_hwc: Uint8
    grid_hw: tuple[int, int]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.image_hwc.shape[1], self.image_hwc.shape[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its size and pixels, hexadecimal."""
        named = hashlib.sha256(repr(self.image_hwc.shape).encode(), usedforsecurity=False)
        named.update(self.image_hwc.data)
        return named.hexdigest()


def view(pixels_hwc: Uint8, size_wh: tuple[int, int], rules: VisionRules) -> View:
    """Resize an image, (H, W, 3) uint8, for the text encoder.

    It is resized first to `size_wh` pixels, its size for the model.

    Raises:
        InputError: the aspect ratio exceeds 200.
        BundleError: the rules make a view of too many pixels.
    """
    image = _resize(Image.fromarray(pixels_hwc), size_wh, rules.view_resample)
    cell = rules.cell_px
    if rules.align:
        most, fewest = ALIGN_MOST * cell * cell, ALIGN_FEWEST * cell * cell
        aligned = _fit(image.size, cell, fewest=fewest, most=most, least=cell)
        image = _resize(image, aligned, rules.resample)
    fitted = _fit(image.size, cell, fewest=rules.min_pixels, most=rules.max_pixels, least=0)
    if fitted[0] * fitted[1] * rules.frames > MAX_PATCH_PIXELS:
        raise _too_large(fitted)
    if rules.arithmetic == "torchvision":
        seen = _resize_16(np.asarray(image), fitted, rules.resample)
    else:
        seen = np.array(_resize(image, fitted, rules.resample))
    seen.flags.writeable = False  # shared by prompts
    return View(seen, (fitted[1] // rules.patch_px, fitted[0] // rules.patch_px))


def merged_grid(seen: View, rules: VisionRules) -> tuple[int, int]:
    """Return rows and columns of merged patches; each is one token of the prompt."""
    return seen.grid_hw[0] // rules.merge, seen.grid_hw[1] // rules.merge


def pixel_values(seen: View, rules: VisionRules) -> Float32:
    """Cut a view into normalised patches.

    Returns:
        (P, 3 * frames * patch_px * patch_px) float32, channels before frames before rows before
        columns; patches row by row inside a merged one, and merged ones row by row.
    """
    patch, merge = rules.patch_px, rules.merge
    rows, columns = seen.grid_hw
    blocks = seen.image_hwc.reshape(
        rows // merge, merge, patch, columns // merge, merge, patch, 3
    ).transpose(6, 0, 3, 1, 4, 2, 5)
    planes = blocks.reshape(3, rows * columns, patch * patch)
    values = np.empty((rows * columns, 3, rules.frames, patch * patch), np.float32)
    for channel, table in enumerate(_tables(rules)):
        values[:, channel] = table[planes[channel]][:, None]
    return values.reshape(rows * columns, -1)


def patch_positions(grid_hw: tuple[int, int], rules: VisionRules) -> Int64:
    """Return row and column of each patch, in the order of `pixel_values`: (P, 2) int64."""
    merge = rules.merge
    rows, columns = grid_hw[0] // merge, grid_hw[1] // merge
    places = np.indices(grid_hw, dtype=np.int64).reshape(2, rows, merge, columns, merge)
    return np.ascontiguousarray(places.transpose(1, 3, 2, 4, 0).reshape(-1, 2))


def _tables(rules: VisionRules) -> Float32:
    """Return the normalised value of each 8-bit value, by channel: (3, 256) float32.

    Scaled in double precision, rounded, and normalised in single, as the processor does.
    """
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, std = np.array(rules.mean, np.float32), np.array(rules.std, np.float32)
    return (scaled - mean[:, None]) / std[:, None]


def _fit(
    size_wh: tuple[int, int], cell: int, *, fewest: int, most: int, least: int
) -> tuple[int, int]:
    """Round a size to multiples of `cell`, the side of a merged patch, between two limits.

    A side has at least `least` pixels before the limits apply.
    """
    width, height = size_wh
    if max(size_wh) > MAX_ASPECT * min(size_wh):
        raise InputError(
            f"the image comes to {width} x {height} pixels for the text encoder, expected one "
            f"side at most {MAX_ASPECT} times the other: crop it around the object first"
        )
    w, h = (max(least, round(side / cell) * cell) for side in size_wh)
    if w * h > most:
        beta = math.sqrt(height * width / most)
        w, h = (max(cell, math.floor(side / beta / cell) * cell) for side in size_wh)
    elif w * h < fewest:
        beta = math.sqrt(fewest / (height * width))
        w, h = (math.ceil(side * beta / cell) * cell for side in size_wh)
    if w * h > MAX_VIEW_PIXELS:
        raise _too_large((w, h))
    return w, h


def _too_large(size_wh: tuple[int, int]) -> BundleError:
    return BundleError(
        f"the bundle's 'prompt.vision' makes a view of {size_wh[0]} x {size_wh[1]} pixels, "
        f"expected at most {MAX_VIEW_PIXELS} and {MAX_PATCH_PIXELS} in all frames: "
        "export the bundle again"
    )


def _resize(image: Image.Image, size_wh: tuple[int, int], resample: str) -> Image.Image:
    if image.size == size_wh:
        return image
    return image.resize(size_wh, Image.Resampling[resample.upper()])


def _resize_16(pixels_hwc: Uint8, size_wh: tuple[int, int], resample: str) -> Uint8:
    """Resize as torchvision does an 8-bit tensor on a CPU: Pillow's filters with 16-bit weights.

    Across first, then down, rounded to 8 bits in between.
    """
    found = pixels_hwc
    for axis, size in ((1, size_wh[0]), (0, size_wh[1])):
        if found.shape[axis] != size:
            found = _pass_16(found, axis, size, *_FILTERS_16[resample])
    return np.array(found, order="C")  # a copy, always


def _pass_16(
    pixels: Uint8, axis: int, size: int, reach: float, kernel: Callable[[Float64], Float64]
) -> Uint8:
    """Resize one axis to `size` by a filter that reaches `reach` pixels of the smaller side."""
    before = pixels.shape[axis]
    wide = max(before / size, 1.0)
    centres = (np.arange(size) + 0.5) * (before / size)
    first = np.maximum((centres - reach * wide + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach * wide + 0.5).astype(np.int64), before) - 1
    taps = first[:, None] + np.arange(int((last - first).max()) + 1)
    weights = kernel(np.abs((taps - centres[:, None] + 0.5) / wide)) * (taps <= last[:, None])
    weights /= weights.sum(1, keepdims=True)
    # The number of bits with which the largest weight fits in 15.
    bits = next(n for n in range(23) if n == 22 or int(weights.max() * 2 ** (n + 1) + 0.5) >= 2**15)
    fixed_point = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32)
    source = np.moveaxis(pixels, axis, -1)
    total = np.full((*source.shape[:-1], size), 2**bits // 2, np.int32)
    for tap, weight in zip(np.minimum(taps, before - 1).T, fixed_point.T, strict=True):
        total += source[..., tap] * weight
    return np.moveaxis((total >> bits).clip(0, 255).astype(np.uint8), -1, axis)


def _triangle(x: Float64) -> Float64:
    return np.maximum(1 - x, 0.0)


def _cubic(x: Float64) -> Float64:
    """Keys' piecewise cubic, a = -1/2."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS_16 = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}
