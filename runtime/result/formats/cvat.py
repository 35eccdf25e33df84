"""CVAT for images 1.1: one XML, with polygons or masks.

By https://docs.cvat.ai/docs/other/xml_format. Parts of one object have one `group_id`; holes are
reached by a bridge. CVAT has no place for a confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from rism.runtime.arrays import BoolArray
from rism.runtime.result.formats.annotated import (
    AnnotatedImage,
    DatasetFormat,
    DatasetOptions,
    Entry,
)
from rism.runtime.result.polygons import polygons, without_holes

if TYPE_CHECKING:
    from rism.runtime.result.segmentation import Segmentation


def mask_runs(mask_hw: BoolArray) -> list[int]:
    """Return the lengths of the runs of 0, 1, 0, ... of a mask (H, W), row by row."""
    flat = np.concatenate([[False], mask_hw.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    found: list[int] = np.diff(np.concatenate([[0], edges, [mask_hw.size]])).tolist()
    return found


def _entry(image: AnnotatedImage, options: DatasetOptions) -> Entry:
    width, height = image.size_wh
    shapes = [
        f'    <{tag} label={quoteattr(options.categories[category])} source="auto" occluded="0" '
        f'{where} z_order="0" group_id="{group}"/>\n'
        for group, (category, result) in enumerate(image.masks, 1)
        for tag, where in _outlines(result, options)
    ]
    about = f'name={quoteattr(image.name)} width="{width}" height="{height}"'
    return {"about": about, "shapes": "".join(shapes)}


def _outlines(result: Segmentation, options: DatasetOptions) -> Iterator[tuple[str, str]]:
    """Yield the tag and the geometry of the mask, or of each part's polygon."""
    if options.rle:
        assert result.box_xyxy is not None
        x_0, y_0, x_1, y_1 = result.box_xyxy
        runs = ", ".join(map(str, mask_runs(result.mask_hw[y_0:y_1, x_0:x_1])))
        place = f'left="{x_0}" top="{y_0}" width="{x_1 - x_0}" height="{y_1 - y_0}"'
        yield "mask", f'rle="{runs}" {place}'
        return
    for part in polygons(result.mask_hw, epsilon=options.epsilon):
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in without_holes(part).tolist())
        yield "polygon", f'points="{points}"'


def _assemble(entries: Callable[[], Iterator[Entry]], options: DatasetOptions) -> Iterator[bytes]:
    kind = "mask" if options.rle else "polygon"
    labels = "".join(
        f"      <label><name>{escape(name)}</name><type>{kind}</type><attributes/></label>\n"
        for name in options.categories
    )
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        "  <meta>\n    <task>\n      <name>rism</name>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
    ).encode()
    for number, entry in enumerate(entries()):
        yield f'  <image id="{number}" {entry["about"]}>\n{entry["shapes"]}  </image>\n'.encode()
    yield b"</annotations>\n"


FORMAT = DatasetFormat(
    "CVAT", ("rle", "epsilon"), whole="annotations.xml", entry=_entry, assemble=_assemble
)
