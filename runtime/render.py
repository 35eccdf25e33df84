"""Pictures of a result: the mask itself, an overlay, a cutout, a heat map.

Arrays in, arrays out; `encode_png` turns any of them into a file's bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.runtime.errors import InputError
from rism.runtime.result import Segmentation

__all__ = ["KINDS", "Kind", "cutout", "encode_png", "heatmap", "overlay", "render"]

Kind = Literal["mask", "overlay", "cutout", "heatmap"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Uint8: TypeAlias = "npt.NDArray[np.uint8]"

TINT_RGB = (255, 45, 85)
_OPACITY = 0.45
# Dark violet, purple, red, orange, pale yellow: lightness rises all the way, so the order
# survives a grey print and colour-blind eyes.
_STOPS_RGB = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
    (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip
_HEAT_SHARE = 0.7
_ROWS = 64
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
_OUTLINE_PART = 300  # the outline is this part of the shorter side


def render(result: Segmentation, image_hwc: Uint8, kind: Kind) -> Uint8:
    """Draw one kind of picture of a result.

    Args:
        result: what `Segmenter.segment` returned for the picture.
        image_hwc: the picture, (H, W, 3) RGB, as `load_image` gives it.
        kind: one of `KINDS`.

    Returns:
        (H, W) for a mask, (H, W, 4) for a cutout, (H, W, 3) otherwise.

    Raises:
        InputError: the picture is not of the result's size.
    """
    if image_hwc.shape[:2] != result.mask_hw.shape:
        height, width = result.mask_hw.shape
        raise InputError(
            f"the picture is {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, the result "
            f"{width} x {height}: pass the picture that was segmented"
        )
    painters: Mapping[Kind, Callable[[], Uint8]] = {
        "mask": lambda: result.mask_hw.astype(np.uint8) * np.uint8(255),
        "overlay": lambda: overlay(image_hwc, result.mask_hw),
        "cutout": lambda: cutout(image_hwc, result.mask_hw),
        "heatmap": lambda: heatmap(image_hwc, result.refined_hw),
    }
    return painters[kind]()


def overlay(
    image_hwc: Uint8, mask_hw: npt.NDArray[np.bool_], *, tint_rgb: tuple[int, int, int] = TINT_RGB
) -> Uint8:
    """Tint the mask and draw its outline: (H, W, 3)."""
    tint = np.array(tint_rgb, np.float32)
    drawn = image_hwc.copy()
    blended = image_hwc[mask_hw] * np.float32(1 - _OPACITY) + tint * np.float32(_OPACITY)
    drawn[mask_hw] = np.rint(blended)
    outline = _outline(mask_hw)
    # A white rim outside the tinted line: one of the two shows on any background.
    drawn[outline & ~mask_hw] = 255
    drawn[outline & mask_hw] = tint
    return drawn


def cutout(image_hwc: Uint8, mask_hw: npt.NDArray[np.bool_]) -> Uint8:
    """Keep the mask and make the rest transparent: (H, W, 4) RGBA."""
    drawn = np.zeros((*mask_hw.shape, 4), np.uint8)
    # What is transparent is also black: the picture's background must not travel in the file.
    drawn[mask_hw, :3] = image_hwc[mask_hw]
    drawn[..., 3] = mask_hw * np.uint8(255)
    return drawn


def heatmap(image_hwc: Uint8, map_hw: npt.NDArray[np.float32]) -> Uint8:
    """Lay a map in [0, 1], (H, W), in colours over the grey picture: (H, W, 3)."""
    drawn = np.empty((*map_hw.shape, 3), np.uint8)
    # Some rows at a time: the floats between bytes and bytes are seven times as large.
    for top in range(0, len(map_hw), _ROWS):
        rows = slice(top, top + _ROWS)
        level = np.rint(np.clip(map_hw[rows], 0.0, 1.0) * 255).astype(np.uint8)
        grey = (image_hwc[rows] @ _GREY_WEIGHTS)[..., None]
        drawn[rows] = np.rint(_PALETTE[level] * _HEAT_SHARE + grey * (1 - _HEAT_SHARE))
    return drawn


def encode_png(pixels: Uint8) -> bytes:
    """Encode (H, W), (H, W, 3) or (H, W, 4) uint8 as a PNG file's bytes."""
    buffer = io.BytesIO()
    # A two-valued mask shrinks with the slow setting. Pictures hardly do: the usual level, 6, takes
    # six times as long as 2 for files that are an eighth smaller.
    Image.fromarray(pixels).save(buffer, "PNG", optimize=pixels.ndim == 2, compress_level=2)
    return buffer.getvalue()


def _outline(mask_hw: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels within the outline's width of the mask's edge, on both sides."""
    thickness = max(1, round(min(mask_hw.shape) / _OUTLINE_PART))
    return _grown(mask_hw, thickness) & _grown(~mask_hw, thickness)


def _grown(mask_hw: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    """Pixels at most `by` rows and `by` columns from the mask."""
    for axis in (0, 1):
        lines = mask_hw.swapaxes(0, axis)
        grown = lines.copy(order="K")
        for step in range(1, by + 1):
            grown[step:] |= lines[:-step]
            grown[:-step] |= lines[step:]
        mask_hw = grown.swapaxes(0, axis)
    return mask_hw


def _palette() -> npt.NDArray[np.float32]:
    """Interpolate the stops to 256 colours, (256, 3) float32."""
    stops = np.array(_STOPS_RGB, np.float32)
    at = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), at, stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.float32)


_PALETTE = _palette()
