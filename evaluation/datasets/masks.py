"""Checks and decodes true masks in the form of COCO's `segmentation`.

pycocotools draws the polygons, as in all published scores. It is written in C and does not check
its input, so everything is checked before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from rism.evaluation.datasets.sample import Mask
from rism.evaluation.names import MASK_MERGES
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import MAX_PIXELS
from rism.runtime.result.rle import decode_rle

MAX_PARTS = 4096
MAX_NUMBERS = 2**20
MAX_OUTLINE_PX = 2**20
MAX_CHARACTERS_A_PIXEL = 6

Polygon: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rle:
    """Runs of a mask, 0 first, in column-major order: COCO's compressed string, or lengths."""

    size_hw: tuple[int, int]
    counts: str | tuple[int, ...]


@dataclass(frozen=True)
class CocoSegmentation:
    """The parts of one object: polygons (x, y, x, y, ...) or runs, as in the file."""

    parts: tuple[Polygon | Rle, ...]


def check_segmentation(found: object, where: str) -> CocoSegmentation:
    """Check COCO's `segmentation`, except what depends on the image's size.

    Args:
        found: a list of polygons, each a list of numbers; one such polygon alone; an RLE
            {"size", "counts"}, compressed or not; or a list of RLEs.
        where: names it in messages.

    Raises:
        InputError: it is none of these; a polygon has fewer than three points, an odd number of
            coordinates, or coordinates that are not finite; runs do not add up to their size.
    """
    if isinstance(found, Mapping):
        return CocoSegmentation((_rle(found, where),))
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)) or not found:
        raise InputError(f"{where} has no outline, expected polygons or an RLE")
    parts = [found] if _is_number(found[0]) else found
    if len(parts) > MAX_PARTS:
        raise InputError(f"{where} has {len(parts)} parts, expected at most {MAX_PARTS}")
    return CocoSegmentation(
        tuple(
            _rle(part, where) if isinstance(part, Mapping) else _polygon(part, place, where)
            for place, part in enumerate(parts)
        )
    )


def decode_segmentation(
    segmentation: CocoSegmentation, size_hw: tuple[int, int], *, merge: str, where: str
) -> Mask:
    """Draw the parts and merge them.

    Args:
        segmentation: the parts.
        size_hw: height and width of the image.
        merge: "legacy" keeps the pixels that exactly one part covers, as the public evaluators
            do (they add the parts up and keep where the sum is 1); "union" those of any part.
        where: names it in messages.

    Returns:
        (H, W) bool.

    Raises:
        InputError: see `check_fit`.
    """
    if merge not in MASK_MERGES:
        raise InputError(
            f"masks cannot be merged as '{one_line(merge)}': use {' or '.join(MASK_MERGES)}"
        )
    check_fit(segmentation, size_hw, where)
    times = np.zeros(size_hw, np.uint16)
    for part in segmentation.parts:
        times += _decode_rle(part, where) if isinstance(part, Rle) else _draw(part, size_hw)
    return times == 1 if merge == "legacy" else times > 0


def check_fit(segmentation: CocoSegmentation, size_hw: tuple[int, int], where: str) -> None:
    """Check that the parts are of an image of this size.

    Points may lie outside, as some of COCO's do by a pixel or two; drawing cuts them off.

    Raises:
        InputError: a part lies farther outside than the image is long, or is an RLE of another
            size.
    """
    height, width = size_hw
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{where} is on an image of {width} x {height} pixels")
    margin = max(height, width)
    for place, part in enumerate(segmentation.parts):
        if isinstance(part, Rle):
            if part.size_hw != size_hw:
                raise InputError(
                    f"the RLE of {where} is of {part.size_hw[1]} x {part.size_hw[0]} pixels, its "
                    f"image of {width} x {height}"
                )
            continue
        xy = part.reshape(-1, 2)
        if (xy < -margin).any() or (xy > np.array([width, height]) + margin).any():
            x, y = xy[np.abs(xy).max(axis=1).argmax()]
            raise InputError(
                f"polygon {place} of {where} has a point at ({x:g}, {y:g}), far outside its "
                f"image of {width} x {height} pixels"
            )
        # The memory for drawing is in proportion to this.
        if np.abs(np.diff(xy, axis=0, append=xy[:1])).max(axis=1).sum() > MAX_OUTLINE_PX:
            raise InputError(
                f"polygon {place} of {where} has an outline longer than {MAX_OUTLINE_PX} pixels"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _polygon(found: object, place: int, where: str) -> Polygon:
    name = f"polygon {place} of {where}"
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
        raise InputError(f"{name} is {one_line(repr(found), limit=40)}, expected a list of numbers")
    if len(found) > MAX_NUMBERS:
        raise InputError(f"{name} has {len(found)} numbers, expected at most {MAX_NUMBERS}")
    if len(found) % 2:
        raise InputError(f"{name} has {len(found)} numbers, expected x and y of each point")
    if len(found) < 6:
        raise InputError(f"{name} has {len(found) // 2} points, expected at least 3")
    if not all(map(_is_number, found)):
        raise InputError(f"{name} has coordinates that are not numbers")
    try:
        polygon = np.array(found, np.float64)
    except OverflowError:
        polygon = np.array([np.inf])
    if not np.isfinite(polygon).all():
        raise InputError(f"{name} has coordinates that are not finite")
    return polygon


def _draw(polygon: Polygon, size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a polygon: (H, W) uint8, 0 or 1."""
    runs = coco_mask.frPyObjects([polygon.tolist()], *size_hw)
    return np.asarray(coco_mask.decode(runs)[:, :, 0], np.uint8)


def _rle(found: object, where: str) -> Rle:
    if not isinstance(found, Mapping) or not isinstance(found.get("size"), (list, tuple)):
        raise InputError(f"the RLE of {where} has no size, expected [height, width]")
    size, counts = found["size"], found.get("counts")
    if len(size) != 2 or not all(isinstance(n, int) and 0 < n <= MAX_PIXELS for n in size):
        raise InputError(
            f"the RLE of {where} has the size {one_line(size, limit=40)}, expected [height, width]"
        )
    height, width = size
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise InputError(f"the RLE of {where} is of {width} x {height} pixels, which is too many")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        if len(counts) > MAX_CHARACTERS_A_PIXEL * (pixels + 1):
            raise InputError(f"the RLE of {where} is longer than any of its size")
        return Rle((height, width), counts)
    if not isinstance(counts, (list, tuple)):
        raise InputError(f"the RLE of {where} has no counts, expected COCO's string or a list")
    if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != pixels:
        raise InputError(
            f"the RLE of {where} does not add up to its size, {width} x {height} pixels"
        )
    return Rle((height, width), tuple(counts))


def _decode_rle(rle: Rle, where: str) -> Mask:
    """Decode runs: (H, W) bool."""
    if isinstance(rle.counts, str):
        try:
            return decode_rle(rle.counts, rle.size_hw)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    values = np.arange(len(rle.counts)) % 2 == 1
    return np.repeat(values, rle.counts).reshape(rle.size_hw, order="F")
