"""Semantic masks: a PNG for each image whose pixels are numbers of categories, and their names.

0 is the background; categories count from 1. Where masks overlap, the later one is kept.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from rism.runtime.errors import InputError
from rism.runtime.result.formats.annotated import AnnotatedImage, DatasetFormat, DatasetOptions

_MOST = 255
_COLOURS = np.array(
    # Pascal VOC's colours: the bits of a number in turn for red, green and blue, highest first.
    [
        [sum((number >> 3 * at + channel & 1) << 7 - at for at in range(8)) for channel in range(3)]
        for number in range(_MOST + 1)
    ],
    np.uint8,
)


def _encode(image: AnnotatedImage, _: DatasetOptions) -> bytes:
    width, height = image.size_wh
    numbers = np.zeros((height, width), np.uint8)
    for category, result in image.masks:
        numbers[result.mask_hw] = category + 1
    drawn = Image.fromarray(numbers).convert("P")
    drawn.putpalette(_COLOURS.tobytes())
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()


def _fixed(options: DatasetOptions) -> Mapping[str, bytes]:
    """Return the names, the background's in line 1.

    Raises:
        InputError: a pixel cannot hold so many.
    """
    if len(options.categories) > _MOST:
        raise InputError(
            f"there are {len(options.categories)} categories, a pixel of a PNG holds {_MOST} and "
            "the background: use another format"
        )
    return {
        "classes.txt": "".join(f"{each}\n" for each in ("background", *options.categories)).encode()
    }


FORMAT = DatasetFormat("PNG", (), fixed=_fixed, image_file="masks/{}.png".format, encode=_encode)
