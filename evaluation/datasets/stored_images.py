"""Pictures of datasets: on the pixel grid that their masks were drawn on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as PillowImage

from rism.evaluation.datasets.sample import Image, Mask
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.formats import open_image
from rism.runtime.image.loading import exif_orientation, load_image

__all__ = ["header_size_hw", "light_pixels", "read_stored"]

_LIGHT = 128


def read_stored(source: Path | bytes) -> Image:
    """Read a picture as its pixels are stored, whatever EXIF says of its orientation.

    COCO's outlines were drawn on the stored pixels, and the public evaluators open pictures
    with Pillow, which does not turn them. rism turns every picture upright at its door; this
    goes through the same door and turns it back.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: it is missing, no picture, damaged or too large.
    """
    upright_hwc = load_image(source)
    return np.ascontiguousarray(_turned_back(upright_hwc, _orientation(source)))


def header_size_hw(source: Path | bytes, name: str, *, upright: bool = False) -> tuple[int, int]:
    """Return height and width by the header: as stored, or upright as EXIF says.

    Raises:
        InputError: there is no header to be read.
    """
    try:
        with _opened(source) as data, open_image(data, "the image") as image:
            height, width = image.height, image.width
    except Exception as error:  # decoders raise whatever they stumble on in a hostile header
        raise InputError(
            f"the picture of {name} cannot be read ({one_line(error, limit=80)}): get it again"
        ) from None
    swapped = upright and 5 <= _orientation(source) <= 8
    return (width, height) if swapped else (height, width)


def light_pixels(image_hwc: Image, source: Path | bytes, name: str) -> Mask:
    """Take an image as a mask: true where it is light, at least 128 of 255.

    Colours count by their brightness, and so do those of palettes, not their indices. What could
    be meant in two ways is refused: transparency, and numbers of classes that are all dark.

    Args:
        image_hwc: (H, W, 3) uint8 RGB.
        source: what it was read from.
        name: of the mask, for messages.

    Raises:
        InputError: it is no mask of something.
    """
    gray = np.asarray(PillowImage.fromarray(image_hwc).convert("L"))
    if _has_transparency(source):
        raise InputError(f"{name} is transparent in places: save it in black and white")
    brightest = int(gray.max())
    if 0 < brightest < _LIGHT:
        raise InputError(
            f"{name} is nowhere brighter than {brightest} of 255, expected 255 on the object and "
            "0 elsewhere: save it in black and white"
        )
    if brightest == 0:
        raise InputError(
            f"{name} is black all over: where what is asked for is not in the picture, say so with "
            '"present": false in a FILE.jsonl'
        )
    return gray >= _LIGHT


def _has_transparency(source: Path | bytes) -> bool:
    """Tell whether a picture that could be read may have transparent pixels."""
    with _opened(source) as data, open_image(data, "the image") as image:
        return image.has_transparency_data


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _orientation(source: Path | bytes) -> int:
    """EXIF orientation of a picture that could be read: 1 to 8."""
    try:
        with _opened(source) as data, open_image(data, "the image") as image:
            if image.format == "TIFF":  # Pillow itself turns these, for everybody
                return 1
            return exif_orientation(image)
    except Exception:  # unreadable EXIF turned nothing
        return 1


def _turned_back(upright_hwc: Image, orientation: int) -> Image:
    """Undo what an orientation did to the stored pixels."""
    swapped = upright_hwc.transpose(1, 0, 2)
    return {
        2: upright_hwc[:, ::-1],
        3: upright_hwc[::-1, ::-1],
        4: upright_hwc[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }.get(orientation, upright_hwc)
