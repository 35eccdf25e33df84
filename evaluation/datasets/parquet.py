"""Datasets in parquet files: four layouts of RefCOCO on hubs, and columns that are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from rism.evaluation.datasets.listing import Listing, clean_sentence
from rism.evaluation.datasets.masks import Segmentation, check_segmentation, decode_segmentation
from rism.evaluation.datasets.sample import Image, Mask, Problem, Sample
from rism.evaluation.datasets.stored_images import header_size_hw, light_pixels, read_stored
from rism.runtime.errors import InputError, one_line
from rism.runtime.result.rle import encode_rle

__all__ = ["Parquet", "open_parquet"]

MAX_ROWS = 2_000_000
_ROLES = ("image", "expression", "mask")
_COCO_NAME = re.compile(r"(COCO_[a-z]+2014_\d{12})(_\d+)?\.jpg")


@dataclass(frozen=True)
class _Reference:
    """An object and the sentences about it, from one row."""

    key: str
    image: str
    segmentation: object
    sentences: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class _Layout:
    """How to recognise one way of laying out the columns, and how to read a row.

    Attributes:
        columns: all of these are there.
        read: (row, number of the row, wording) to references.
        image: the column with the picture's bytes; empty where pictures are files.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int, str], Iterator[_Reference]]
    image: str = "image"


@dataclass(frozen=True)
class _Place:
    """Where a picture is: a row of a file; and the outline of the object."""

    row: int
    where: str
    segmentation: Segmentation


@dataclass
class _Rows:
    """Rows of several files, numbered through; pictures are read a row group at a time."""

    files: Sequence[Path]
    column: str
    groups: list[tuple[int, int, Path]] = field(default_factory=list)  # first row, group, file
    kept: tuple[int, Any] | None = None

    def picture(self, row: int) -> bytes:
        """Bytes of the picture of a row."""
        first, group, file = max(
            (entry for entry in self.groups if entry[0] <= row), key=lambda entry: entry[0]
        )
        kept = self.kept  # taken once: another thread may replace it
        if kept is None or kept[0] != first:
            try:
                table = pq.ParquetFile(file).read_row_group(group, columns=[self.column])
            except (OSError, pyarrow.ArrowException) as error:
                raise _unreadable(file, error) from None
            self.kept = kept = (first, table.column(self.column))
        value = kept[1][row - first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise InputError(f"row {row} has no picture in its column {self.column}")
        return data


@dataclass(frozen=True)
class Parquet:
    """A split in parquet files, opened. See `Dataset`.

    Masks are on the pixels as they are stored, and so are the pictures: EXIF turns neither.
    """

    name: str
    samples: Sequence[Sample]
    notes: Sequence[str]
    problems: Sequence[Problem]
    merge: str
    places: Mapping[str, _Place]
    rows: _Rows
    images: Path | None
    counts: tuple[int, int]  # objects and sentences, those with problems too

    def image(self, sample: Sample) -> Image:
        """Read a sample's picture: (H, W, 3) uint8 RGB, as stored."""
        return read_stored(self._source(sample))

    def mask(self, sample: Sample) -> Mask:
        """Decode a sample's true mask: (H, W) bool."""
        place = self.places[sample.key]
        size_hw = header_size_hw(self._source(sample), sample.image)
        return decode_segmentation(place.segmentation, size_hw, merge=self.merge, where=place.where)

    def _source(self, sample: Sample) -> Path | bytes:
        if self.images is not None:
            return self.images / sample.image
        return self.rows.picture(self.places[sample.key].row)


def open_parquet(
    files: Sequence[Path],
    *,
    name: str,
    merge: str = "legacy",
    wording: str = "raw",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    find_images: Callable[[], Path] | None = None,
) -> Parquet:
    """Open a split.

    Args:
        files: its parts, in order.
        name: of the dataset, with its split.
        merge: how several polygons become one mask (`decode_segmentation`).
        wording: "raw" or "sent", for layouts that have both.
        limit: only so many samples, the first ones.
        columns: names of columns for "image", "expression", "mask" and, if wanted, "id", a row a
            sample; None for a layout that is known. What is left out is called as it is.
        find_images: says where COCO's pictures are, for the layout that has none inside.

    Raises:
        InputError: a file cannot be read, or its columns are of no layout that is known.
    """
    layout = _layout_of(files[0], columns)
    rows = _Rows(files, layout.image)
    images = None
    if not layout.image:
        if find_images is None:
            raise InputError(
                f"'{one_line(files[0])}' has no pictures inside: "
                "say with --root where COCO's train2014 is"
            )
        images = find_images()
    listing: Listing[_Place] = Listing()
    first_rows: dict[str, int] = {}
    objects = sentences = 0
    for number, row in _read(files, layout, rows):
        for reference in _references(layout, row, number, wording, listing):
            objects += 1
            sentences += len(reference.sentences)
            first_rows.setdefault(reference.image, number)
            _add(listing, reference, first_rows[reference.image], images)
    if not listing.entries:
        first = listing.problems[0] if listing.problems else Problem(name, "it has no rows")
        raise InputError(f"nothing of {name} can be scored; {first.where}: {first.what}")
    notes = []
    if layout is _LAYOUTS[0]:
        notes.append(
            "each object has one outline in this copy, and RefCOCO's may have several: "
            "true masks can differ from REFER's"
        )
    return Parquet(
        name=name,
        samples=listing.samples(limit),
        notes=notes,
        problems=tuple(listing.problems),
        merge=merge,
        places=listing.entries,
        rows=rows,
        images=images,
        counts=(objects, sentences),
    )


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(
        f"'{one_line(file)}' cannot be read as parquet ({one_line(error, limit=80)}): get it again"
    )


def _layout_of(file: Path, columns: Mapping[str, str] | None) -> _Layout:
    try:
        there = pq.read_schema(file).names
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    if columns is not None:
        return _named_layout(file, columns, there)
    for layout in _LAYOUTS:
        if set(layout.columns) <= set(there):
            return layout
    expected = "; or ".join(", ".join(layout.columns) for layout in _LAYOUTS)
    raise InputError(
        f"'{one_line(file)}' has the columns {one_line(', '.join(there), limit=200)}, expected "
        f"{expected}: name yours with --columns, or write a FILE.jsonl"
    )


def _read(
    files: Sequence[Path], layout: _Layout, rows: _Rows
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows without their pictures, numbered through."""
    number = 0
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            columns = [n for n in opened.schema_arrow.names if n != layout.image]
            if not set(layout.columns) <= {*columns, layout.image}:
                raise InputError(f"'{one_line(file)}' has other columns than the files before it")
            for group in range(opened.num_row_groups):
                rows.groups.append((number, group, file))
                if number + opened.metadata.row_group(group).num_rows > MAX_ROWS:
                    raise InputError(f"'{one_line(file)}' has more than {MAX_ROWS:,} rows")
                for row in opened.read_row_group(group, columns=columns).to_pylist():
                    yield number, row
                    number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(file, error) from None


def _references(
    layout: _Layout, row: Mapping[str, Any], number: int, wording: str, listing: Listing[_Place]
) -> Sequence[_Reference]:
    try:
        return list(layout.read(row, number, wording))
    except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        listing.refuse(f"row {number}", f"it is not as its columns promise: {error!r}")
        return []


def _add(listing: Listing[_Place], reference: _Reference, row: int, images: Path | None) -> None:
    """List an object's sentences, each a sample."""
    where = f"object {reference.key}"
    try:
        segmentation = check_segmentation(reference.segmentation, where)
        if images is not None:
            if Path(reference.image).name != reference.image:
                raise InputError(f"its picture's name {reference.image!r} is no file name")
            if not (images / reference.image).is_file():
                raise InputError(f"its picture {reference.image} is not in '{one_line(images)}'")
    except (InputError, ValueError) as error:
        listing.refuse(where, error, sentences=len(reference.sentences))
        return
    for name, sentence in reference.sentences:
        key = f"{reference.key}:{name}"
        try:
            sample = Sample(key, reference.image, clean_sentence(sentence))
        except InputError as error:
            listing.refuse(key, error)
            continue
        listing.add(sample, _Place(row, where, segmentation))


def _named_layout(file: Path, columns: Mapping[str, str], there: Sequence[str]) -> _Layout:
    """Read columns by the names that were given, a row a sample or several of one object."""
    if unknown := [role for role in columns if role not in (*_ROLES, "id")]:
        raise InputError(
            f"--columns has '{one_line(unknown[0], limit=40)}', expected {', '.join(_ROLES)} and "
            "id, such as image=img,expression=caption"
        )
    named = {role: columns.get(role, role) for role in (*_ROLES, *columns)}
    if absent := [f"{role}={name}" for role, name in named.items() if name not in there]:
        raise InputError(
            f"'{one_line(file)}' has no column for {one_line(', '.join(absent), limit=120)}, only "
            f"{one_line(', '.join(there), limit=200)}: name yours, as --columns {absent[0]}"
        )

    def read(row: Mapping[str, Any], number: int, _: str) -> Iterator[_Reference]:
        key = str(row[named["id"]]) if "id" in named else f"row {number}"
        said = row[named["expression"]]
        texts = [said] if isinstance(said, str) else list(said or ())
        sentences = [(str(place), text) for place, text in enumerate(texts)]
        mask = _outline(row[named["mask"]], f"the mask of {key}")
        yield _Reference(key, f"row {number}", mask, sentences)

    return _Layout(tuple(named.values()), read, image=named["image"])


def _outline(found: object, name: str) -> object:
    """Bring a mask to COCO's form: an image to its RLE, JSON to what it says."""
    if isinstance(found, Mapping) and "bytes" in found:
        found = found["bytes"]
    if isinstance(found, str):
        return json.loads(found)
    if not isinstance(found, bytes):
        return found
    mask_hw = light_pixels(read_stored(found), found, name)
    return {"size": list(mask_hw.shape), "counts": encode_rle(mask_hw)}


def _worded(sentences: Sequence[Mapping[str, Any]], wording: str) -> list[tuple[str, object]]:
    return [(str(entry["sent_id"]), entry.get(wording)) for entry in sentences]


def _one_row_an_object(row: Mapping[str, Any], number: int, _: str) -> Iterator[_Reference]:
    """lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: one outline as a flat list, sentences as text.

    `file_name` is REFER's, which ends with a number of the object: the picture's is without.
    """
    name = _COCO_NAME.fullmatch(row.get("file_name") or "")
    image = f"{name[1]}.jpg" if name else str(row.get("file_name") or f"row {number}")
    sentences = [(str(place), text) for place, text in enumerate(row["answer"] or ())]
    yield _Reference(f"row {number}", image, row["segmentation"], sentences)


def _with_its_refer_entry(row: Mapping[str, Any], _: int, wording: str) -> Iterator[_Reference]:
    """jxu124/refcoco, refcocoplus, refcocog: REFER's entries; pictures are COCO's own files."""
    annotation = json.loads(row["raw_anns"])
    image = Path(row["image_path"]).name
    sentences = _worded(row["sentences"], wording)
    yield _Reference(str(row["ref_id"]), image, annotation["segmentation"], sentences)


def _one_row_a_picture(row: Mapping[str, Any], _: int, wording: str) -> Iterator[_Reference]:
    """jxu124/refcoco-benchmark: a picture with all its objects and REFER's entries."""
    for entry in row["ref_list"]:
        about, annotation = entry["ref_info"], entry["ann_info"]
        sentences = _worded(about["sentences"], wording)
        image = str(row["image_info"]["file_name"])
        yield _Reference(str(about["ref_id"]), image, annotation["segmentation"], sentences)


def _with_masks_anew(row: Mapping[str, Any], _: int, __: str) -> Iterator[_Reference]:
    """moondream/refcoco-m: a picture with its objects, drawn anew as RLE."""
    for entry in row["samples"]:
        sentences = [(str(place), text) for place, text in enumerate(entry["sentences"])]
        image = str(row["file_name"])
        yield _Reference(str(entry["id"]), image, entry["mask"], sentences)


_LAYOUTS = (
    _Layout(("image", "answer", "segmentation"), _one_row_an_object),
    _Layout(("raw_anns", "image_path", "sentences", "ref_id"), _with_its_refer_entry, image=""),
    _Layout(("image", "ref_list", "image_info"), _one_row_a_picture),
    _Layout(("image", "file_name", "samples"), _with_masks_anew),
)
