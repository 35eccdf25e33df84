"""COCO's instances: one JSON of images, annotations and categories.

By https://cocodataset.org/#format-data and pycocotools. Polygons have a ring for each part; a hole
is reached by a bridge of no width, which pycocotools draws as a hole. `score`, the confidence, is a
key of COCO's results that readers of annotations ignore.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rism.runtime.names import EPSILON
from rism.runtime.result.formats.annotated import (
    AnnotatedImage,
    DatasetFormat,
    DatasetOptions,
    Entry,
)
from rism.runtime.result.polygons import polygons, without_holes
from rism.runtime.result.rle import coco_rle

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation


def annotation(
    result: Segmentation, *, category_id: int, rle: bool = False, epsilon: float = EPSILON
) -> dict[str, Any]:
    """Return an annotation without `id` and `image_id`; the mask must not be empty."""
    assert result.box_xyxy is not None
    x_0, y_0, x_1, y_1 = result.box_xyxy
    rings = [] if rle else polygons(result.mask_hw, epsilon=epsilon)
    return {
        "category_id": category_id,
        "segmentation": coco_rle(result.mask_hw)
        if rle
        else [without_holes(part).ravel().tolist() for part in rings],
        "area": result.area_px,
        "bbox": [x_0, y_0, x_1 - x_0, y_1 - y_0],
        "iscrowd": 0,
        **({} if result.confidence is None else {"score": result.confidence}),
    }


def _entry(image: AnnotatedImage, options: DatasetOptions) -> Entry:
    width, height = image.size_wh
    return {
        "id": image.id,
        "image": {"file_name": image.name, "width": width, "height": height},
        "annotations": [
            annotation(result, category_id=category + 1, rle=options.rle, epsilon=options.epsilon)
            for category, result in image.masks
        ],
    }


def _assemble(entries: Callable[[], Iterator[Entry]], options: DatasetOptions) -> Iterator[bytes]:
    """Write images, then annotations, each on a line; numbers are given as they come."""
    categories = [{"id": at, "name": name} for at, name in enumerate(options.categories, 1)]
    yield f'{{"categories": {json.dumps(categories)},\n"images": ['.encode()
    for at, entry in enumerate(entries(), 1):
        yield _item(at, {"id": _id(entry, at), **entry["image"]})
    yield b'\n],\n"annotations": ['
    number = 0
    for at, entry in enumerate(entries(), 1):
        for found in entry["annotations"]:
            number += 1
            yield _item(number, {"id": number, "image_id": _id(entry, at), **found})
    yield b"\n]}\n"


def _id(entry: Entry, at: int) -> int:
    return at if entry["id"] is None else int(entry["id"])


def _item(number: int, item: dict[str, Any]) -> bytes:
    return (("\n" if number == 1 else ",\n") + json.dumps(item)).encode()


FORMAT = DatasetFormat(
    "COCO", ("rle", "epsilon"), whole="annotations.json", entry=_entry, assemble=_assemble
)
