"""Pictures of datasets: on the pixel grid that their masks were drawn on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rism.evaluation.samples import Image
from rism.runtime.errors import InputError, one_line
from rism.runtime.image_formats import open_image
from rism.runtime.images import exif_orientation, load_image

__all__ = ["has_transparency", "header_size_hw", "read_stored"]


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


def has_transparency(file: Path) -> bool:
    """Tell whether a picture that could be read may have transparent pixels."""
    with file.open("rb") as data, open_image(data, "the image") as image:
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
