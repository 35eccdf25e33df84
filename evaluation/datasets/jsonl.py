"""FILE.jsonl: pictures, expressions and masks of one's own, one sample a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rism.evaluation.datasets.listing import Listing, clean_sentence
from rism.evaluation.datasets.masks import Segmentation, check_segmentation, decode_segmentation
from rism.evaluation.datasets.sample import Image, Mask, Problem, Sample
from rism.evaluation.datasets.stored_images import header_size_hw, light_pixels
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import load_image

__all__ = ["Lines", "open_lines"]

MAX_BYTES = 2**28
MAX_NAME = 4096
_KEYS = ("image", "expression", "mask", "id", "group", "present")


@dataclass(frozen=True)
class _Truth:
    """Where a sample's picture and mask are."""

    where: str
    image: Path
    mask: Path | Segmentation | None


@dataclass(frozen=True)
class Lines:
    """A FILE.jsonl, opened. See `Dataset`. Pictures and masks are upright, as EXIF says."""

    name: str
    samples: Sequence[Sample]
    notes: Sequence[str]
    problems: Sequence[Problem]
    merge: str
    truths: Mapping[str, _Truth]

    def image(self, sample: Sample) -> Image:
        """Read a sample's picture: (H, W, 3) uint8 RGB, upright."""
        truth = self.truths[sample.key]
        try:
            return load_image(truth.image)
        except InputError as error:
            raise InputError(f"{truth.where}: {error}") from None

    def mask(self, sample: Sample) -> Mask:
        """Read or decode a sample's true mask: (H, W) bool."""
        truth = self.truths[sample.key]
        size_hw = header_size_hw(truth.image, truth.where, upright=True)
        if truth.mask is None:
            return np.zeros(size_hw, np.bool_)
        if isinstance(truth.mask, Segmentation):
            return decode_segmentation(
                truth.mask, size_hw, merge=self.merge, where=f"the mask of {truth.where}"
            )
        try:
            name = f"the mask '{one_line(truth.mask)}'"
            mask_hw = light_pixels(load_image(truth.mask), truth.mask, name)
        except InputError as error:
            raise InputError(f"{truth.where}: {error}") from None
        if mask_hw.shape != size_hw:
            raise InputError(
                f"{truth.where}: the mask '{one_line(truth.mask)}' is "
                f"{mask_hw.shape[1]} x {mask_hw.shape[0]} pixels, its picture "
                f"{size_hw[1]} x {size_hw[0]}"
            )
        return mask_hw


def open_lines(file: Path, *, merge: str = "union", limit: int | None = None) -> Lines:
    """Open a FILE.jsonl.

    A line is {"image", "expression", "mask"} and, if wanted, "id" (else "line N"), "group" and
    "present". Paths start from the file's folder. A mask is the path of a picture, light where
    the object is; a COCO RLE; or polygons. With "present": false it is left out.

    Args:
        file: UTF-8, one JSON object a line; empty lines are passed over.
        merge: how several polygons become one mask (`decode_segmentation`).
        limit: only so many samples, the first ones.

    Raises:
        InputError: it cannot be read, or has no line that can be scored. A single bad line is
            a `Problem`, named by its number.
    """
    name = f"'{one_line(file)}'"
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES // 2**20} MiB: cut it in parts")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({one_line(error.strerror or error)}): check the path"
        ) from None
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{name}, line {bad} is no UTF-8: save it as UTF-8") from None
    listing: Listing[_Truth] = Listing()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            sample, truth = _read_line(line, number, file.parent)
        except InputError as error:
            listing.refuse(where, error)
            continue
        if sample.key in listing.entries:
            taken = listing.entries[sample.key].where
            listing.refuse(where, f"its id '{one_line(sample.key, limit=60)}' is that of {taken}")
            continue
        listing.add(sample, truth)
    if not listing.entries:
        first = listing.problems[0] if listing.problems else Problem(name, "it is empty")
        raise InputError(f"{name} has nothing that can be scored; {first.where}: {first.what}")
    return Lines(
        name=file.name,
        samples=listing.samples(limit),
        notes=(),
        problems=tuple(listing.problems),
        merge=merge,
        truths=listing.entries,
    )


def _read_line(line: str, number: int, folder: Path) -> tuple[Sample, _Truth]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is no JSON ({one_line(error, limit=80)})") from None
    if not isinstance(data, dict):
        raise InputError('it is no JSON object, expected {"image": ..., "expression": ...}')
    present = data.get("present", True)
    if not isinstance(present, bool):
        raise InputError("'present' is neither true nor false")
    for key in ("image", "expression", *(("mask",) if present else ())):
        if data.get(key) is None:
            there = one_line(", ".join(map(str, data)), limit=80) or "nothing"
            raise InputError(f"it has no '{key}', only {there}; known are {', '.join(_KEYS)}")
    image = _path(data["image"], folder, "image")
    try:
        expression = clean_sentence(data["expression"])
    except InputError as error:
        raise InputError(f"'expression': {error}") from None
    key, group = data.get("id", f"line {number}"), data.get("group", "")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    for name, value in (("id", key), ("group", group)):
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise InputError(f"'{name}' is no printable text of at most 200 characters")
    if not key:
        raise InputError("'id' is empty")
    where = f"line {number}"
    mask = _mask(data.get("mask"), folder, where, present=present)
    return Sample(key, str(data["image"]), expression, group, present), _Truth(where, image, mask)


def _mask(found: object, folder: Path, where: str, *, present: bool) -> Path | Segmentation | None:
    if not present:
        if found not in (None, []):
            raise InputError("it has a mask although 'present' is false: leave one of them out")
        return None
    if isinstance(found, str):
        return _path(found, folder, "mask")
    return check_segmentation(found, f"the mask of {where}")


def _path(found: object, folder: Path, key: str) -> Path:
    """A file that is there; relative ones start from the folder of the FILE.jsonl."""
    if not isinstance(found, str) or not found or len(found) > MAX_NAME or "\0" in found:
        raise InputError(f"'{key}' is {one_line(repr(found), limit=40)}, expected a path")
    path = folder / found
    try:
        there = path.is_file()
    except OSError:
        there = False
    if not there:
        raise InputError(f"'{key}' '{one_line(found, limit=120)}' is not there")
    return path
