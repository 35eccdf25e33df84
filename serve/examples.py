"""Scenes to try the service with, drawn when asked for: no image travels in the wheel."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from PIL import Image

from rism.evaluation.scenes.judged import judged_scene
from rism.runtime.arrays import Uint8
from rism.runtime.result.rendering import encode_png

_THUMBNAIL_PX = 240
_THUMBNAIL_QUALITY = 80


@dataclass(frozen=True)
class Example:
    """A test scene, and what may be asked of it.

    Attributes:
        scene: its number, see `judged_scene`.
        size_wh: pixels.
        expressions: some that fit an object; one of "street" fits none.
    """

    scene: int
    size_wh: tuple[int, int]
    expressions: tuple[str, ...]


EXAMPLES: Mapping[str, Example] = {
    "street": Example(10158, (640, 480), ("the green van", "the yellow cat", "the red bus")),
    "mushrooms": Example(
        10343, (560, 420), ("the ball above the yellow mushroom", "the purple mushroom")
    ),
    "cups": Example(10307, (480, 480), ("the big pink cup", "the small cup", "the house")),
    "animals": Example(10166, (480, 360), ("the dog", "the bird", "the blue star")),
}
"""Four of the scenes in examples/, pixel for pixel."""


def example_pixels(name: str) -> Uint8:
    """Draw an example, (H, W, 3); a KeyError where there is none of this name."""
    example = EXAMPLES[name]
    pixels: Uint8 = judged_scene(example.scene, size_wh=example.size_wh)[0].image_hwc
    return pixels


@cache
def example_png(name: str) -> bytes:
    """Return an example as a PNG; a KeyError where there is none of this name."""
    return encode_png(example_pixels(name))


@cache
def thumbnail_jpeg(name: str) -> bytes:
    """Return an example as a JPEG of at most 240 x 240 pixels; a KeyError as above."""
    with Image.open(io.BytesIO(example_png(name))) as image:
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


def draw_examples() -> None:
    """Draw all of them, so that the page's first visitor need not wait."""
    for name in EXAMPLES:
        thumbnail_jpeg(name)
