"""Label Studio's tasks with predictions, as brush masks or polygons, and their label config.

By https://labelstud.io/guide/predictions and label-studio-sdk. Images are addressed as Label
Studio's local files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from rism.runtime.names import EPSILON
from rism.runtime.result.formats.annotated import (
    AnnotatedImage,
    DatasetFormat,
    DatasetOptions,
    Entry,
)
from rism.runtime.result.formats.brush_rle import encode_brush_rle
from rism.runtime.result.polygons import polygons, without_holes

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation


def region(result: Segmentation, *, image: str) -> dict[str, Any]:
    """Return what all regions of a result share; `image` is the name of the Image tag."""
    width, height = result.size_wh
    return {
        "to_name": image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "meta": {"text": [result.expression]},
        **({} if result.confidence is None else {"score": result.confidence}),
    }


def region_values(
    result: Segmentation, *, brush: bool, epsilon: float = EPSILON
) -> list[dict[str, Any]]:
    """Return one brush mask, or a polygon for each part, in percent of the image's sides."""
    if brush:
        return [{"format": "rle", "rle": encode_brush_rle(result.mask_hw).tolist()}]
    scale = 100 / np.array(result.size_wh)
    return [
        {"points": (without_holes(part) * scale).tolist(), "closed": True}
        for part in polygons(result.mask_hw, epsilon=epsilon)
    ]


def least_score(regions: list[dict[str, Any]]) -> dict[str, float]:
    """Return the score of a prediction: the least of its regions, if they have one."""
    scores = [each["score"] for each in regions if "score" in each]
    return {"score": min(scores)} if scores else {}


def _entry(image: AnnotatedImage, options: DatasetOptions) -> Entry:
    kind = "brushlabels" if options.rle else "polygonlabels"
    regions = [
        {
            "id": f"{number}-{part}",
            "from_name": "label",
            "type": kind,
            **region(result, image="image"),
            "value": {**value, kind: [options.categories[category]]},
        }
        for number, (category, result) in enumerate(image.masks, 1)
        for part, value in enumerate(
            region_values(result, brush=options.rle, epsilon=options.epsilon), 1
        )
    ]
    prediction = {"model_version": "rism", "result": regions, **least_score(regions)}
    address = f"/data/local-files/?d={quote(image.reference)}"
    return {"data": {"image": address}, "predictions": [prediction]}


def _assemble(entries: Callable[[], Iterator[Entry]], _: DatasetOptions) -> Iterator[bytes]:
    yield b"["
    for number, task in enumerate(entries()):
        yield ((",\n" if number else "\n") + json.dumps(task)).encode()
    yield b"\n]\n"


def _fixed(options: DatasetOptions) -> Mapping[str, bytes]:
    tag = "BrushLabels" if options.rle else "PolygonLabels"
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in options.categories)
    return {
        "label_config.xml": (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n'
        ).encode()
    }


FORMAT = DatasetFormat(
    "Label Studio",
    ("rle", "epsilon"),
    fixed=_fixed,
    whole="tasks.json",
    entry=_entry,
    assemble=_assemble,
)
