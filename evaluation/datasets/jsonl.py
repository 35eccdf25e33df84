"""FILE.jsonl: the user's own images, expressions and masks, one sample per line."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rism.evaluation.datasets.listing import ListedDataset, Listing, clean_sentence
from rism.evaluation.datasets.masks import CocoSegmentation, check_segmentation, decode_segmentation
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Image, Mask, Sample
from rism.evaluation.datasets.stored_images import header_size_hw, light_pixels
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import load_image

MAX_BYTES = 2**28
MAX_NAME = 4096
_KEYS = ("image", "expression", "mask", "id", "group", "present")


@dataclass(frozen=True)
class _Line:
    """The number of a line, and the image and mask of its sample."""

    where: str
    image: Path
    mask: Path | CocoSegmentation | None


class JsonLines(ListedDataset[_Line]):
    """An opened FILE.jsonl. Images and masks are upright, as EXIF says."""

    def image(self, sample: Sample) -> Image:
        """Read a sample's image: (H, W, 3) uint8 RGB, upright."""
        line = self.entries[sample.key]
        try:
            return load_image(line.image)
        except InputError as error:
            raise InputError(f"{line.where}: {error}") from None

    def mask(self, sample: Sample) -> Mask:
        """Read or decode a sample's true mask: (H, W) bool."""
        line = self.entries[sample.key]
        size_hw = header_size_hw(line.image, line.where, upright=True)
        if line.mask is None:
            return np.zeros(size_hw, np.bool_)
        if isinstance(line.mask, CocoSegmentation):
            where = f"the mask of {line.where}"
            return decode_segmentation(line.mask, size_hw, merge=self.merge, where=where)
        name = f"the mask '{one_line(line.mask)}'"
        try:
            mask_hw = light_pixels(load_image(line.mask), line.mask, name)
            if mask_hw.shape != size_hw:
                raise InputError(
                    f"{name} is {mask_hw.shape[1]} x {mask_hw.shape[0]} pixels, its image "
                    f"{size_hw[1]} x {size_hw[0]}"
                )
        except InputError as error:
            raise InputError(f"{line.where}: {error}") from None
        return mask_hw


def open_lines(file: Path, request: DatasetRequest) -> JsonLines:
    """Open a FILE.jsonl.

    A line is {"image", "expression", "mask"} and optionally "id" (else "line N"), "group" and
    "present". Paths are relative to the file's folder. A mask is the path of an image that is light
    on the object, a COCO RLE, or polygons; it is left out with "present": false.

    The file is UTF-8 with one JSON object per line; empty lines are ignored.

    Raises:
        InputError: it cannot be read, or no line can be scored. A single bad line is a `Problem`
            with its number.
    """
    name = f"'{one_line(file)}'"
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES // 2**20} MiB: split it")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({one_line(error.strerror or error)}): check the path"
        ) from None
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{name}, line {bad} is not UTF-8: save it as UTF-8") from None
    listing: Listing[_Line] = Listing()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            sample, entry = _read_line(line, where, file.parent)
            if sample.key in listing.entries:
                taken = listing.entries[sample.key].where
                raise InputError(f"its id '{one_line(sample.key, limit=60)}' is that of {taken}")
        except InputError as error:
            listing.refuse(where, error)
            continue
        listing.add(sample, entry)
    listing.require_samples(name)
    samples, problems = listing.samples(request.limit), tuple(listing.problems)
    return JsonLines(file.name, samples, (), problems, request.gt_merge, listing.entries)


def _read_line(line: str, where: str, folder: Path) -> tuple[Sample, _Line]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({one_line(error, limit=80)})") from None
    if not isinstance(data, dict):
        raise InputError('it is not a JSON object, expected {"image": ..., "expression": ...}')
    present = data.get("present", True)
    if not isinstance(present, bool):
        raise InputError("'present' is neither true nor false")
    for key in ("image", "expression", *(("mask",) if present else ())):
        if data.get(key) is None:
            others = one_line(", ".join(map(str, data)), limit=80) or "nothing"
            raise InputError(f"it has no '{key}', only {others}; known are {', '.join(_KEYS)}")
    image = _path(data["image"], folder, "image")
    try:
        expression = clean_sentence(data["expression"])
    except InputError as error:
        raise InputError(f"'expression': {error}") from None
    key, group = data.get("id", where), data.get("group", "")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    for name, value in (("id", key), ("group", group)):
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise InputError(f"'{name}' is not printable text of at most 200 characters")
    if not key:
        raise InputError("'id' is empty")
    mask = _mask(data.get("mask"), folder, where, present=present)
    return Sample(key, str(data["image"]), expression, group, present), _Line(where, image, mask)


def _mask(
    found: object, folder: Path, where: str, *, present: bool
) -> Path | CocoSegmentation | None:
    if not present:
        if found not in (None, []):
            raise InputError("it has a mask although 'present' is false: leave one of them out")
        return None
    if isinstance(found, str):
        return _path(found, folder, "mask")
    return check_segmentation(found, f"the mask of {where}")


def _path(found: object, folder: Path, key: str) -> Path:
    """Return the path of a file that exists, relative to the folder of the FILE.jsonl."""
    if not isinstance(found, str) or not found or len(found) > MAX_NAME or "\0" in found:
        raise InputError(f"'{key}' is {one_line(repr(found), limit=40)}, expected a path")
    path = folder / found
    try:
        exists = path.is_file()
    except OSError:
        exists = False
    if not exists:
        raise InputError(f"'{key}' '{one_line(found, limit=120)}' is not there")
    return path
