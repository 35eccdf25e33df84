"""Datasets in parquet files: four layouts of RefCOCO on hubs, or columns by name."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from rism.evaluation.datasets.listing import ListedDataset, Listing, clean_sentence
from rism.evaluation.datasets.masks import CocoSegmentation, check_segmentation, decode_segmentation
from rism.evaluation.datasets.refcoco import find_images
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Image, Mask, Sample
from rism.evaluation.datasets.stored_images import header_size_hw, light_pixels, read_stored
from rism.runtime.errors import InputError, one_line
from rism.runtime.result.rle import coco_rle

MAX_ROWS = 2_000_000
_ROLES = ("image", "expression", "mask")
_ONE_OUTLINE = (
    "each object has one outline in this copy, and RefCOCO's may have several: true masks can "
    "differ from REFER's"
)
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
    """One layout of the columns.

    Attributes:
        columns: of a file in this layout.
        read: from a row, its number and the wording to references.
        image: the column with the image's bytes; empty where images are files.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int, str], Iterator[_Reference]]
    image: str = "image"


@dataclass(frozen=True)
class _Place:
    """The row of an image, and the outline of an object."""

    row: int
    where: str
    segmentation: CocoSegmentation


@dataclass
class _Rows:
    """The images of several files by row number; they are read a row group at a time."""

    column: str
    groups: list[tuple[int, int, Path]] = field(default_factory=list)  # first row, group, file
    kept: tuple[int, Any] | None = None

    def image(self, row: int) -> bytes:
        """Return the bytes of the image of a row."""
        first, group, file = max(entry for entry in self.groups if entry[0] <= row)
        kept = self.kept  # read once: another thread may replace it
        if kept is None or kept[0] != first:
            try:
                table = pq.ParquetFile(file).read_row_group(group, columns=[self.column])
            except (OSError, pyarrow.ArrowException) as error:
                raise _unreadable(file, error) from None
            self.kept = kept = (first, table.column(self.column))
        value = kept[1][row - first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise InputError(f"row {row} has no image in its column {self.column}")
        return data


@dataclass(frozen=True)
class Parquet(ListedDataset[_Place]):
    """An opened split in parquet files.

    Masks and images are in the stored orientation; EXIF turns neither.
    """

    rows: _Rows
    images: Path | None
    counts: tuple[int, int]  # objects and sentences, including those with problems

    def image(self, sample: Sample) -> Image:
        """Read a sample's image: (H, W, 3) uint8 RGB, as stored."""
        return read_stored(self._source(sample))

    def mask(self, sample: Sample) -> Mask:
        """Decode a sample's true mask: (H, W) bool."""
        place = self.entries[sample.key]
        size_hw = header_size_hw(self._source(sample), sample.image)
        return decode_segmentation(place.segmentation, size_hw, merge=self.merge, where=place.where)

    def _source(self, sample: Sample) -> Path | bytes:
        if self.images is not None:
            return self.images / sample.image
        return self.rows.image(self.entries[sample.key].row)


def open_parquet(files: Sequence[Path], request: DatasetRequest, *, name: str) -> Parquet:
    """Open a split from its parts, in order; the layout without images finds COCO's in the root.

    Raises:
        InputError: a file cannot be read, or its columns are of no known layout.
    """
    layout = _layout_of(files[0], request.columns)
    rows, images = _Rows(layout.image), None
    if not layout.image:
        if request.root is None:
            raise InputError(
                f"'{one_line(files[0])}' has no images inside: "
                "name the folder of COCO's train2014 with --root"
            )
        images = find_images(request.root)
    listing: Listing[_Place] = Listing()
    first_rows: dict[str, int] = {}
    objects = sentences = 0
    for number, row in _read(files, layout, rows):
        for reference in _references(layout, row, number, request.wording, listing):
            objects += 1
            sentences += len(reference.sentences)
            first_rows.setdefault(reference.image, number)
            _add(listing, reference, first_rows[reference.image], images)
    listing.require_samples(name)
    notes = [_ONE_OUTLINE] if layout is _LAYOUTS[0] else []
    samples, problems = listing.samples(request.limit), tuple(listing.problems)
    counts = objects, sentences
    read = samples, notes, problems, request.gt_merge, listing.entries
    return Parquet(name, *read, rows, images, counts)


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(
        f"'{one_line(file)}' cannot be read as parquet ({one_line(error, limit=80)}): get it again"
    )


def _layout_of(file: Path, columns: Mapping[str, str] | None) -> _Layout:
    try:
        names = pq.read_schema(file).names
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
    if columns is not None:
        return _named_layout(file, columns, names)
    for layout in _LAYOUTS:
        if set(layout.columns) <= set(names):
            return layout
    expected = "; or ".join(", ".join(layout.columns) for layout in _LAYOUTS)
    raise InputError(
        f"'{one_line(file)}' has the columns {one_line(', '.join(names), limit=200)}, expected "
        f"{expected}: name yours with --columns, or write a FILE.jsonl"
    )


def _read(
    files: Sequence[Path], layout: _Layout, rows: _Rows
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Read the rows of all files without their images, with a running number."""
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
        listing.refuse(f"row {number}", f"it does not fit its columns: {error!r}")
        return []


def _add(listing: Listing[_Place], reference: _Reference, row: int, images: Path | None) -> None:
    """List an object's sentences, each a sample."""
    where = f"object {reference.key}"
    try:
        segmentation = check_segmentation(reference.segmentation, where)
        if images is not None:
            if Path(reference.image).name != reference.image:
                raise InputError(f"its image's name {reference.image!r} is not a file name")
            if not (images / reference.image).is_file():
                raise InputError(f"its image {reference.image} is not in '{one_line(images)}'")
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
    """Make a layout of columns by name, with one or several expressions per row."""
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
        value = row[named["expression"]]
        texts = [value] if isinstance(value, str) else value
        mask = _outline(row[named["mask"]], f"the mask of {key}")
        yield _Reference(key, f"row {number}", mask, _numbered(texts))

    return _Layout(tuple(named.values()), read, image=named["image"])


def _outline(found: object, name: str) -> object:
    """Convert a mask to COCO's form: an image to an RLE, JSON text to its value."""
    if isinstance(found, Mapping) and "bytes" in found:
        found = found["bytes"]
    if isinstance(found, str):
        return json.loads(found)
    if not isinstance(found, bytes):
        return found
    mask_hw = light_pixels(read_stored(found), found, name)
    return coco_rle(mask_hw)


def _worded(sentences: Sequence[Mapping[str, Any]], wording: str) -> list[tuple[str, object]]:
    return [(str(entry["sent_id"]), entry.get(wording)) for entry in sentences]


def _numbered(sentences: Sequence[object] | None) -> list[tuple[str, object]]:
    return [(str(place), text) for place, text in enumerate(sentences or ())]


def _one_row_an_object(row: Mapping[str, Any], number: int, _: str) -> Iterator[_Reference]:
    """lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: one outline as a flat list, sentences as text.

    `file_name` is REFER's, which is the image's with the number of the object at its end.
    """
    name = _COCO_NAME.fullmatch(row.get("file_name") or "")
    image = f"{name[1]}.jpg" if name else str(row.get("file_name") or f"row {number}")
    yield _Reference(f"row {number}", image, row["segmentation"], _numbered(row["answer"]))


def _with_its_refer_entry(row: Mapping[str, Any], _: int, wording: str) -> Iterator[_Reference]:
    """jxu124/refcoco, refcocoplus, refcocog: REFER's entries; images are COCO's own files."""
    annotation = json.loads(row["raw_anns"])
    image = Path(row["image_path"]).name
    sentences = _worded(row["sentences"], wording)
    yield _Reference(str(row["ref_id"]), image, annotation["segmentation"], sentences)


def _one_row_an_image(row: Mapping[str, Any], _: int, wording: str) -> Iterator[_Reference]:
    """jxu124/refcoco-benchmark: an image with all its objects and REFER's entries."""
    for entry in row["ref_list"]:
        about, annotation = entry["ref_info"], entry["ann_info"]
        sentences = _worded(about["sentences"], wording)
        image = str(row["image_info"]["file_name"])
        yield _Reference(str(about["ref_id"]), image, annotation["segmentation"], sentences)


def _with_new_masks(row: Mapping[str, Any], _: int, __: str) -> Iterator[_Reference]:
    """moondream/refcoco-m: an image with its objects and new masks as RLE."""
    for entry in row["samples"]:
        sentences = _numbered(entry["sentences"])
        yield _Reference(str(entry["id"]), str(row["file_name"]), entry["mask"], sentences)


_LAYOUTS = (
    _Layout(("image", "answer", "segmentation"), _one_row_an_object),
    _Layout(("raw_anns", "image_path", "sentences", "ref_id"), _with_its_refer_entry, image=""),
    _Layout(("image", "ref_list", "image_info"), _one_row_an_image),
    _Layout(("image", "file_name", "samples"), _with_new_masks),
)
