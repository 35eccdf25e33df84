"""Reads images of datasets in the orientation that their masks were drawn in."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from rism.evaluation.datasets.sample import Image, Mask
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import exif_orientation, load_image, open_image

_LIGHT = 128


def read_stored(source: Path | bytes) -> Image:
    """Read an image in its stored orientation, whatever EXIF says.

    COCO's outlines were drawn on the stored pixels, and the public evaluators open images with
    Pillow, which does not apply EXIF. `load_image` does, so its rotation is undone here.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: it is missing, not an image, damaged or too large.
    """
    upright_hwc = load_image(source)
    swapped = upright_hwc.transpose(1, 0, 2)
    stored = {
        2: upright_hwc[:, ::-1],
        3: upright_hwc[::-1, ::-1],
        4: upright_hwc[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }.get(_orientation(source), upright_hwc)
    return np.ascontiguousarray(stored)


def header_size_hw(source: Path | bytes, name: str, *, upright: bool = False) -> tuple[int, int]:
    """Return height and width from the header: as stored, or upright as EXIF says.

    Raises:
        InputError: the header cannot be read.
    """
    try:
        with _opened(source) as image:
            height, width = image.height, image.width
    except Exception as error:  # decoders raise errors of any kind on a damaged header
        raise InputError(
            f"the image of {name} cannot be read ({one_line(error, limit=80)}): get it again"
        ) from None
    swapped = upright and 5 <= _orientation(source) <= 8
    return (width, height) if swapped else (height, width)


def light_pixels(image_hwc: Image, source: Path | bytes, name: str) -> Mask:
    """Convert an image to a mask: true where its brightness is at least 128 of 255.

    Ambiguous images are refused: those with transparency, and class numbers, which are all dark.

    The image is (H, W, 3) uint8 RGB, `source` its file or bytes; `name` is the mask's in messages.

    Raises:
        InputError: it is ambiguous or empty.
    """
    gray = np.asarray(PillowImage.fromarray(image_hwc).convert("L"))
    with _opened(source) as image:
        transparent = image.has_transparency_data
    if transparent:
        raise InputError(f"{name} is transparent in places: save it in black and white")
    brightest = int(gray.max())
    if 0 < brightest < _LIGHT:
        raise InputError(
            f"{name} is nowhere brighter than {brightest} of 255, expected 255 on the object and "
            "0 elsewhere: save it in black and white"
        )
    if brightest == 0:
        raise InputError(
            f"{name} is black all over: for an object that is absent write "
            '"present": false in a FILE.jsonl'
        )
    return gray >= _LIGHT


@contextmanager
def _opened(source: Path | bytes) -> Iterator[PillowImage.Image]:
    with (
        io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as data,
        open_image(data, "the image") as image,
    ):
        yield image


def _orientation(source: Path | bytes) -> int:
    """Return the EXIF orientation that `load_image` applied: 1 to 8."""
    try:
        with _opened(source) as image:
            # Pillow itself applies the orientation of TIFF.
            return 1 if image.format == "TIFF" else exif_orientation(image)
    except Exception:  # unreadable EXIF was not applied
        return 1
