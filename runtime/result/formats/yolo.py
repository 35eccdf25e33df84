"""YOLO's segmentation labels: data.yaml, images/ and a text file in labels/ for each image.

By https://docs.ultralytics.com/datasets/segment/ and `supervision`. A line is one object: the
number of its class and one ring, in shares of the image's sides. Parts and holes are joined to the
ring by bridges, which readers draw one pixel wide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rism.runtime.names import EPSILON
from rism.runtime.result.formats.annotated import AnnotatedImage, DatasetFormat, DatasetOptions
from rism.runtime.result.polygons import INSIDE_PIXEL, pixel_polygons, without_holes

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation


def label_line(result: Segmentation, *, category: int, epsilon: float = EPSILON) -> str:
    """Return the line of a mask, without its line break; "" for an empty mask."""
    parts = [without_holes(part) for part in pixel_polygons(result.mask_hw, epsilon=epsilon)]
    if not parts:
        return ""
    shares = (without_holes(parts) + INSIDE_PIXEL) / np.array(result.size_wh)
    return " ".join([str(category), *(f"{share:.6f}" for share in shares.ravel().tolist())])


def _encode(image: AnnotatedImage, options: DatasetOptions) -> bytes:
    lines = [
        label_line(result, category=category, epsilon=options.epsilon)
        for category, result in image.masks
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _fixed(options: DatasetOptions) -> Mapping[str, bytes]:
    names = [f"  {at}: {_yaml(name)}\n" for at, name in enumerate(options.categories)]
    head = "# Take images of your own for `val`: these are the same.\ntrain: images\nval: images\n"
    return {"data.yaml": f"{head}names:\n{''.join(names)}".encode()}


def _yaml(name: str) -> str:
    """Quote a name; what YAML does not allow as it is becomes an escape."""
    quoted = json.dumps(name, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


FORMAT = DatasetFormat(
    "YOLO",
    ("epsilon",),
    fixed=_fixed,
    image_file="labels/{}.txt".format,
    encode=_encode,
    images="images",
)
