"""Drawings of a result: the mask, an overlay, a cutout, a heat map.

Arrays in, arrays out; `encode_png` turns any of them into a file's bytes.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image

from rism.runtime.arrays import BoolArray, Float32, Uint8
from rism.runtime.errors import InputError
from rism.runtime.result.labels import Rgb, draw_labels, label_text, with_scale
from rism.runtime.result.segmentation import Segmentation

Kind = Literal["mask", "overlay", "cutout", "heatmap"]
KINDS: tuple[Kind, ...] = get_args(Kind)


COLOURS_RGB: tuple[Rgb, ...] = (
    (255, 45, 85), (0, 200, 190), (255, 200, 0), (150, 60, 235), (60, 200, 50), (255, 120, 0),
    (20, 110, 255), (255, 90, 220),
)  # fmt: skip
"""Red, turquoise, yellow, violet, green, orange, blue, pink."""
_OPACITY = 0.3
_LIGHT, _DARK = 255, 0
_LOOKED_AT = 4000  # pixels of a mask
_EYE_WEIGHTS = np.array([0.3, 0.5, 0.2], np.float32)
# Dark violet, purple, red, orange, pale yellow: lightness rises, so that the order shows in grey
# prints and to colour-blind readers.
_STOPS_RGB = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
    (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip
_HEAT_SHARE = 0.7
_ROWS = 64
_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
_OUTLINE_PART = 300  # the outline is this part of the shorter side


def render(result: Segmentation, image_hwc: Uint8, kind: Kind) -> Uint8:
    """Draw a result on its image, (H, W, 3) RGB, as `load_image` returns it.

    Returns:
        (H, W) for a mask, (H, W, 4) for a cutout, (H, W, 3) for an overlay, and (H + scale, W, 3)
        for a heat map.

    Raises:
        InputError: the image is not of the result's size.
    """
    if image_hwc.shape[:2] != result.mask_hw.shape:
        height, width = result.mask_hw.shape
        raise InputError(
            f"the image is {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, the result "
            f"{width} x {height}: pass the image that was segmented"
        )
    painters: Mapping[Kind, Callable[[], Uint8]] = {
        "mask": lambda: result.mask_hw.astype(np.uint8) * np.uint8(255),
        "overlay": lambda: overlay(image_hwc, [result]),
        "cutout": lambda: cutout(image_hwc, result.mask_hw),
        "heatmap": lambda: with_scale(heatmap(image_hwc, result.refined_hw), SCALE_RGB),
    }
    return painters[kind]()


def overlay(image_hwc: Uint8, results: Sequence[Segmentation], *, labels: bool = True) -> Uint8:
    """Tint the masks of results, each in a colour that contrasts with its object: (H, W, 3).

    A mask has a light and a dark outline, so that one of them shows on any background. A label has
    the expression and the confidence, and says what is doubtful or not found.
    """
    drawn = image_hwc.copy()
    colours = contrasting(image_hwc, [result.mask_hw for result in results])
    for result, colour in zip(results, colours, strict=True):
        tint, mask_hw = np.array(colour, np.float32), result.mask_hw
        blended = drawn[mask_hw] * np.float32(1 - _OPACITY) + tint * np.float32(_OPACITY)
        drawn[mask_hw] = np.rint(blended)
    for result, colour in zip(results, colours, strict=True):
        outline(drawn, result.mask_hw, colour)
    if labels:
        texts = [label_text(result, number) for number, result in enumerate(results, 1)]
        boxes = [result.box_xyxy for result in results]
        draw_labels(drawn, list(zip(texts, colours, boxes, strict=True)))
    return drawn


def contrasting(image_hwc: Uint8, masks: Sequence[BoolArray]) -> list[Rgb]:
    """Choose for each mask (H, W) the colour that differs most from the image (H, W, 3) under it.

    Returns:
        Colours from a fixed list, each once until all are used.
    """
    palette = np.array(COLOURS_RGB, np.float32)
    chosen: list[Rgb] = []
    for mask_hw in masks:
        places = np.flatnonzero(mask_hw)
        some = places[:: len(places) // _LOOKED_AT + 1]
        pixels = image_hwc.reshape(-1, 3)[some].astype(np.float32)
        # Roughly weighted by perception: (p, 1, 3) against (1, c, 3).
        apart = np.sqrt((pixels[:, None] - palette) ** 2 @ _EYE_WEIGHTS)
        # A percentile, not the mean: half green and half red is not brown.
        score = np.percentile(apart, 25, axis=0) if len(some) else np.zeros(len(palette))
        since = len(chosen) // len(palette) * len(palette)
        free = [at for at, each in enumerate(COLOURS_RGB) if each not in chosen[since:]]
        chosen.append(COLOURS_RGB[max(free, key=lambda at: (float(score[at]), -at))])
    return chosen


def outline(drawn_hwc: Uint8, mask_hw: BoolArray, colour: Rgb) -> None:
    """Draw a coloured line inside the edge of a mask, and a light and a dark one outside."""
    thickness = max(1, round(min(mask_hw.shape) / _OUTLINE_PART))
    near = _grown(mask_hw, thickness)
    drawn_hwc[_grown(near, thickness) & ~near] = _DARK
    drawn_hwc[near & ~mask_hw] = _LIGHT
    drawn_hwc[_grown(~mask_hw, 2 * thickness) & mask_hw] = colour


def cutout(image_hwc: Uint8, mask_hw: BoolArray) -> Uint8:
    """Keep the mask and make the rest transparent: (H, W, 4) RGBA."""
    drawn = np.zeros((*mask_hw.shape, 4), np.uint8)
    # Transparent pixels are black: the file must not contain the image's background.
    drawn[mask_hw, :3] = image_hwc[mask_hw]
    drawn[..., 3] = mask_hw * np.uint8(255)
    return drawn


def heatmap(image_hwc: Uint8, map_hw: Float32) -> Uint8:
    """Blend a map in [0, 1], (H, W), in colours with the grey image: (H, W, 3)."""
    drawn = np.empty((*map_hw.shape, 3), np.uint8)
    # A few rows at a time: the floats in between take seven times the memory.
    for top in range(0, len(map_hw), _ROWS):
        rows = slice(top, top + _ROWS)
        level = np.rint(np.clip(map_hw[rows], 0.0, 1.0) * 255).astype(np.uint8)
        grey = (image_hwc[rows] @ _GREY_WEIGHTS)[..., None]
        drawn[rows] = np.rint(_PALETTE[level] * _HEAT_SHARE + grey * (1 - _HEAT_SHARE))
    return drawn


def encode_png(pixels: Uint8) -> bytes:
    """Encode (H, W), (H, W, 3) or (H, W, 4) uint8 as a PNG file's bytes."""
    buffer = io.BytesIO()
    # The slow setting pays off for masks only: for images the default level, 6, takes six times as
    # long as 2 for files that are an eighth smaller.
    Image.fromarray(pixels).save(buffer, "PNG", optimize=pixels.ndim == 2, compress_level=2)
    return buffer.getvalue()


def _grown(mask_hw: BoolArray, by: int) -> BoolArray:
    """Return the pixels at most `by` rows and `by` columns from the mask."""
    for axis in (0, 1):
        lines = mask_hw.swapaxes(0, axis)
        grown = lines.copy(order="K")
        for step in range(1, by + 1):
            grown[step:] |= lines[:-step]
            grown[:-step] |= lines[step:]
        mask_hw = grown.swapaxes(0, axis)
    return mask_hw


def _palette() -> Float32:
    """Interpolate the stops to 256 colours, (256, 3) float32."""
    stops = np.array(_STOPS_RGB, np.float32)
    at = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), at, stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.float32)


_PALETTE = _palette()
SCALE_RGB: Uint8 = np.rint(_PALETTE * _HEAT_SHARE + 128 * (1 - _HEAT_SHARE)).astype(np.uint8)
"""(256, 3): the colours of 0 to 1 over a middle grey."""
