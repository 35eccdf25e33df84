"""Masks as COCO RLE, and a row for each id and expression."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from rism.batch.tables import ENCODED, ROWS, table
from rism.runtime.result.rle import encode_rle


def encode(batch: pa.Table) -> pa.Table:
    """Encode the masks that `RismActor` found.

    Returns:
        A row for each image: `results` has, for each expression, what `to_rows` makes rows of.
    """
    rows = []
    for row in batch.to_pylist():
        start = perf_counter()
        size = row.pop("height"), row.pop("width")
        row["results"] = [_result(each, size) for each in row.pop("found")]
        rows.append({**row, "encode_s": perf_counter() - start})
    return table(rows, ENCODED)


def _result(found: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    height, width = size_hw
    made = {**found, "height": height, "width": width}
    packed = made.pop("mask")
    if packed is None:
        return made
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=height * width)
    mask_hw = bits.reshape(height, width).view(np.bool_)
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if len(rows):
        made["box_xyxy"] = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    made["area_px"] = np.count_nonzero(mask_hw)
    made["rle"] = {"size": [height, width], "counts": encode_rle(mask_hw)}
    return made


def to_rows(batch: pa.Table) -> pa.Table:
    """Return a row for each id and expression of what `encode` returns, in its order.

    Columns: id, expression, height and width of the image, rle ({size, counts} as pycocotools
    takes it), box_xyxy (right and bottom exclusive; null where the mask is empty), area_px,
    confidence, separability, reason (why a mask is empty), error (why there is none).
    """
    results = batch.column("results").combine_chunks()
    ids = batch.column("id").combine_chunks().take(results.value_parent_indices())
    fields = results.flatten().flatten()
    return pa.table([ids, *fields], schema=ROWS)
