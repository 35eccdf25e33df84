"""LabelMe's JSON, version 5 and newer: a file for each image, with polygons or masks.

By labelme/_label_file.py and labelme/utils/shape.py of wkentaro/labelme. Parts of one object have
one `group_id`; holes are reached by a bridge. A mask is a PNG of its box, whose corners are pixels
in it.
"""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image

from rism.runtime.result.formats.annotated import AnnotatedImage, DatasetFormat, DatasetOptions
from rism.runtime.result.polygons import INSIDE_PIXEL, pixel_polygons, without_holes

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation

_VERSION = "5.5.0"


def _encode(image: AnnotatedImage, options: DatasetOptions) -> bytes:
    width, height = image.size_wh
    shapes = [
        {
            "label": options.categories[category],
            "flags": {},
            "group_id": number,
            "description": _about(result),
            **outline,
        }
        for number, (category, result) in enumerate(image.masks, 1)
        for outline in _outlines(result, options)
    ]
    found: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image.reference,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def _outlines(result: Segmentation, options: DatasetOptions) -> list[dict[str, Any]]:
    """Return the mask in its box, or a polygon for each part."""
    if not options.rle:
        parts = pixel_polygons(result.mask_hw, epsilon=options.epsilon)
        rings = [(without_holes(part) + INSIDE_PIXEL).tolist() for part in parts]
        return [{"shape_type": "polygon", "points": ring, "mask": None} for ring in rings]
    assert result.box_xyxy is not None
    x_0, y_0, x_1, y_1 = result.box_xyxy
    drawn = io.BytesIO()
    Image.fromarray(result.mask_hw[y_0:y_1, x_0:x_1]).save(drawn, "PNG")
    mask = base64.b64encode(drawn.getvalue()).decode()
    return [{"shape_type": "mask", "points": [[x_0, y_0], [x_1 - 1, y_1 - 1]], "mask": mask}]


def _about(result: Segmentation) -> str:
    sure = "" if result.confidence is None else f", confidence {result.confidence:.3f}"
    return f"{result.expression}{sure}"


FORMAT = DatasetFormat(
    "LabelMe", ("rle", "epsilon"), image_file="{}.json".format, encode=_encode, beside=True
)
