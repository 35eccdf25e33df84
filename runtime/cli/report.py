"""Results as lines for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rism.runtime.result import Segmentation
from rism.runtime.rle import encode_rle

__all__ = ["failure_record", "json_text", "result_record", "summary_line"]


def summary_line(label: str, result: Segmentation, written: Sequence[Path]) -> str:
    """Say in one line what was found.

    `street.png "the green van": box 12,30,200,180, area 5.2 %, separability 1.43,
    confidence 0.98, 48 ms on cpu in float32 -> street.mask.png, street.overlay.png`
    """
    box = result.box_xyxy
    if box is None:
        found = f"nothing found ({result.reason})"
        if result.confidence is not None and result.score_map.max() > 0:
            found += ": --always for a mask all the same"
    else:
        found = (
            f"box {','.join(map(str, box))}, area {result.area_share:.1%}, "
            f"separability {result.separability:.2f}"
        )
        if result.confidence is not None:
            found += f", confidence {result.confidence:.2f}"
    took = f"{sum(result.timings_ms.values()):.0f} ms on {result.provider} in {result.precision}"
    line = f'{label} "{result.expression}": {found}, {took}'
    return line if not written else f"{line} -> {', '.join(map(str, written))}"


def result_record(label: str, result: Segmentation, written: Sequence[Path]) -> dict[str, Any]:
    """One entry of the JSON: the result, its mask as COCO RLE, the files it went to."""
    height, width = result.mask_hw.shape
    return {
        "image": label,
        **result.to_json_dict(),
        "rle": {"size": [height, width], "counts": encode_rle(result.mask_hw)},
        "files": [str(path) for path in written],
    }


def failure_record(label: str, error: Exception) -> dict[str, Any]:
    """One entry of the JSON for a picture that could not be read."""
    return {"image": label, "error": str(error)}


def json_text(records: Sequence[dict[str, Any]]) -> str:
    """Write the entries as one JSON list, ASCII only, with a final newline."""
    return json.dumps(records, indent=2, allow_nan=False) + "\n"
