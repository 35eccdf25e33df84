"""Results as lines of text and as JSON."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rism.cli.file_names import readable
from rism.runtime.result.rle import coco_rle
from rism.runtime.result.segmentation import Segmentation

DEMONSTRATOR = (
    "note: the bundle is a demonstrator that knows drawn shapes only; for photographs "
    "add --model flux2-klein-4b (or step1x), which exports it first"
)


def summary_line(label: str, result: Segmentation, written: Sequence[Path]) -> str:
    """Return what was found in one line.

    `street.png "the van": box 12,30,200,180, area 5.2%, separability 1.43, confidence 0.98,
    48 ms on cpu in float32 -> street.the-van.mask.png, street.the-van.overlay.png`
    """
    box = result.box_xyxy
    if box is None:
        found = f"nothing found ({result.reason})"
        judged = result.confidence is not None or result.outside is not None
        if judged and result.score_map.max() > 0:
            found += ": --always returns a mask nevertheless"
    else:
        found = (
            f"box {','.join(map(str, box))}, area {result.area_share:.1%}, "
            f"separability {result.separability:.2f}"
        )
        if result.outside is not None:
            found += f", doubtful: {result.outside}"
        elif result.confidence is None:
            found += ", confidence not fitted"
        else:
            doubtful = "" if result.doubt is None else " (doubtful)"
            found += f", confidence {result.confidence:.2f}{doubtful}"
    took = f"{sum(result.timings_ms.values()):.0f} ms on {result.provider} in {result.precision}"
    line = f'{label} "{result.expression}": {found}, {took}'
    return _shown(line if not written else f"{line} -> {', '.join(map(str, written))}")


def result_record(
    label: str, result: Segmentation, written: Sequence[Path], number: int | None
) -> dict[str, Any]:
    """Return one entry of the JSON: the result, its mask as COCO RLE, its files, the image's id."""
    files = [str(path) for path in written]
    raws = [_base64(file) for file in files]
    return {
        **_image(label),
        **({} if number is None else {"id": number}),
        **result.to_json_dict(),
        "rle": coco_rle(result.mask_hw),
        "files": [readable(file)[0] for file in files],
        **({"files_base64": raws} if any(raws) else {}),
    }


def failure_record(label: str, error: object) -> dict[str, Any]:
    """Return one entry of the JSON for an image without a result."""
    return {**_image(label), "error": readable(str(error))[0]}


def json_text(records: Sequence[dict[str, Any]]) -> str:
    """Write the entries as one JSON list, ASCII only, with a final newline."""
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def json_line(record: dict[str, Any]) -> str:
    """Write one entry as a line of JSON, ASCII only."""
    return json.dumps(record, allow_nan=False) + "\n"


def _image(label: str) -> dict[str, str]:
    """Return the name of an image; with its bytes where it is not UTF-8."""
    raw = _base64(label)
    return {"image": readable(label)[0], **({} if raw is None else {"image_base64": raw})}


def _base64(path: str) -> str | None:
    """Return the bytes of a path that is not UTF-8, else None."""
    raw = readable(path)[1]
    return None if raw is None else base64.b64encode(raw).decode()


def _shown(line: str) -> str:
    """Escape what a file name could send to the terminal; bytes of names stay."""
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in line
    )
