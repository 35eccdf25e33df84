"""Copies of RefCOCO in parquet files: four layouts, the same samples, pictures and masks."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rism.evaluation.datasets.open import DatasetRequest, open_dataset
from rism.evaluation.datasets.sample import Dataset
from rism.runtime.errors import InputError, RismError
from rism.runtime.result.rle import encode_rle
from tests.evaluation.datasets.refcoco_files import IMAGES, edit_refs, with_orientation, write_refer


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer(tmp_path_factory.mktemp("refer"))


@pytest.fixture(scope="module")
def refer(master: Path) -> Dataset:
    return open_dataset(DatasetRequest("refcoco", root=master))


def entries(master: Path) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], bytes]]:
    """Of the split: REFER's entry, annotation, about the picture, its bytes."""
    refs: list[dict[str, Any]] = []
    edit_refs(master, refs.extend)
    data = json.loads((master / "refcoco" / "instances.json").read_text())
    annotations = {one["id"]: one for one in data["annotations"]}
    images = {one["id"]: one for one in data["images"]}
    found = []
    for ref in refs:
        if ref["split"] == "val":
            about = images[ref["image_id"]]
            picture = (master / IMAGES / about["file_name"]).read_bytes()
            found.append((ref, annotations[ref["ann_id"]], about, picture))
    return found


def is_one_polygon(annotation: dict[str, Any]) -> bool:
    return isinstance(annotation["segmentation"], list) and len(annotation["segmentation"]) == 1


def rows_of_objects(master: Path, _: Dataset) -> list[dict[str, Any]]:
    return [
        {
            "question_id": str(annotation["id"]),
            "image": {"bytes": picture, "path": None},
            "question": "Provide a short description for this region.",
            "answer": [sentence["sent"] for sentence in ref["sentences"]],
            "segmentation": annotation["segmentation"][0],
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "iscrowd": 0,
            "file_name": ref["file_name"],
        }
        for ref, annotation, _, picture in entries(master)
        if is_one_polygon(annotation)
    ]


def rows_of_refer(master: Path, _: Dataset) -> list[dict[str, Any]]:
    return [
        {
            **ref,
            "raw_anns": json.dumps(annotation),
            "raw_image_info": json.dumps(about),
            "raw_sentences": json.dumps(ref["sentences"]),
            "image_path": f"coco/train2014/{about['file_name']}",
        }
        for ref, annotation, about, _ in entries(master)
    ]


def rows_of_pictures(master: Path, _: Dataset) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for ref, annotation, about, picture in entries(master):
        if isinstance(annotation["segmentation"], list):
            row = {"ref_list": [], "image_info": about, "image": {"bytes": picture, "path": None}}
            row = rows.setdefault(about["id"], row)
            row["ref_list"].append({"ref_info": ref, "ann_info": annotation})
    return list(rows.values())


def rows_of_new_masks(master: Path, refer: Dataset) -> list[dict[str, Any]]:
    masks = {sample.key.split(":")[0]: refer.mask(sample) for sample in refer.samples}
    rows: dict[int, dict[str, Any]] = {}
    for ref, _, about, picture in entries(master):
        row = {
            "image": {"bytes": picture, "path": None},
            "image_id": about["id"],
            "file_name": about["file_name"],
            "samples": [],
        }
        mask_hw = masks[str(ref["ref_id"])]
        rows.setdefault(about["id"], row)["samples"].append(
            {
                "id": ref["ref_id"],
                "sentences": [sentence["raw"] for sentence in ref["sentences"]],
                "mask": {"counts": encode_rle(mask_hw), "size": list(mask_hw.shape)},
            }
        )
    return list(rows.values())


LAYOUTS: dict[str, Callable[[Path, Dataset], list[dict[str, Any]]]] = {
    "objects": rows_of_objects,
    "refer": rows_of_refer,
    "pictures": rows_of_pictures,
    "new masks": rows_of_new_masks,
}


def write(rows: list[dict[str, Any]], file: Path, *, group: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_as_refer(master: Path, refer: Dataset, tmp_path: Path, layout: str) -> None:
    rows = LAYOUTS[layout](master, refer)
    half = len(rows) // 2
    write(rows[:half], tmp_path / "data" / "val-00000-of-00002.parquet")
    write(rows[half:], tmp_path / "data" / "val-00001-of-00002.parquet")
    if layout == "refer":
        (tmp_path / "coco").mkdir()
        (tmp_path / "coco" / "train2014").symlink_to(master / IMAGES)
    dataset = open_dataset(DatasetRequest("refcoco", root=tmp_path))
    assert not dataset.problems and dataset.name == "refcoco unc val"
    expected = {
        (sample.image, sample.expression.lower().rstrip("!")): sample for sample in refer.samples
    }
    assert len(expected) == len(refer.samples)
    seen = []
    for sample in dataset.samples:
        twin = expected[sample.image, sample.expression.lower().rstrip("!")]
        np.testing.assert_array_equal(dataset.image(sample), refer.image(twin))
        np.testing.assert_array_equal(dataset.mask(sample), refer.mask(twin))
        seen.append(twin)
    assert len(seen) == len(set(seen)) >= 4
    assert (len(seen) == len(refer.samples)) == (layout in ("refer", "new masks"))
    pictures = [sample.image for sample in dataset.samples]
    assert pictures == sorted(pictures, key=pictures.index)
    published = "unc val as published has 3,811 objects and 10,834 sentences"
    assert any(published in note for note in dataset.notes)
    assert any("one outline" in note for note in dataset.notes) == (layout == "objects")


def test_wordings(master: Path, refer: Dataset, tmp_path: Path) -> None:
    write(rows_of_pictures(master, refer), tmp_path / "refcoco_unc_val-0.parquet")
    for wording, upper in (("raw", True), ("sent", False)):
        dataset = open_dataset(DatasetRequest("refcoco", root=tmp_path, wording=wording, limit=3))
        assert [sample.expression.isupper() for sample in dataset.samples] == [upper] * 3


def test_a_mixture_of_partitions_is_named(master: Path, refer: Dataset, tmp_path: Path) -> None:
    """8,811 rows, as the best known copy of RefCOCO has in its val."""
    keys = ("image", "answer", "segmentation", "file_name")
    row = rows_of_objects(master, refer)[0] | {"image": {"bytes": b"", "path": None}}
    row = {key: row[key] for key in keys} | {"segmentation": [1, 1, 9, 1, 9, 9]}
    write([row] * 8811, tmp_path / "val-0.parquet", group=8811)
    (note,) = [
        n for n in open_dataset(DatasetRequest("refcoco", root=tmp_path)).notes if "8,811" in n
    ]
    assert "a mixture of partitions (3,811 unc plus 5,000 google)" in note


def test_a_file_by_its_path(master: Path, refer: Dataset, tmp_path: Path) -> None:
    file = write(rows_of_new_masks(master, refer), tmp_path / "validation.parquet")
    dataset = open_dataset(DatasetRequest(str(file)))
    assert dataset.name == "validation" and len(dataset.samples) == len(refer.samples)
    without = write(rows_of_refer(master, refer), tmp_path / "annotations.parquet")
    with pytest.raises(InputError, match=r"has no images inside: name the folder"):
        open_dataset(DatasetRequest(str(without)))
    assert len(open_dataset(DatasetRequest(str(without), root=master)).samples) == len(
        refer.samples
    )


def as_png(mask_hw: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask_hw.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


MASKS: dict[str, Callable[[np.ndarray], Any]] = {
    "rle": lambda mask: {"size": list(mask.shape), "counts": encode_rle(mask)},
    "text": lambda mask: json.dumps({"size": list(mask.shape), "counts": encode_rle(mask)}),
    "png": as_png,
    "hub": lambda mask: {"bytes": as_png(mask), "path": None},
}


@pytest.mark.parametrize("form", MASKS)
def test_columns_by_name(master: Path, refer: Dataset, tmp_path: Path, form: str) -> None:
    twins = [sample for sample in refer.samples if refer.mask(sample).any()]
    rows = [
        {
            "picture": (master / IMAGES / sample.image).read_bytes(),
            "caption": sample.expression if form == "rle" else [sample.expression],
            "mask": MASKS[form](refer.mask(sample)),
            "number": at,
        }
        for at, sample in enumerate(twins)
    ]
    file = str(write(rows, tmp_path / "own.parquet"))
    columns = {"image": "picture", "expression": "caption", "id": "number"}
    dataset = open_dataset(DatasetRequest(file, columns=columns))
    assert [s.key for s in dataset.samples] == [f"{at}:0" for at in range(len(rows))]
    assert [s.expression for s in dataset.samples] == [s.expression for s in twins]
    for own, twin in zip(dataset.samples, twins, strict=True):
        np.testing.assert_array_equal(dataset.image(own), refer.image(twin))
        np.testing.assert_array_equal(dataset.mask(own), refer.mask(twin))
    for wrong, says in (
        ({"image": "picture"}, "no column for expression=expression, only picture, caption"),
        ({**columns, "group": "x"}, "--columns has 'group', expected image, expression, mask and"),
        (None, "name yours with --columns, or write a FILE.jsonl"),
    ):
        with pytest.raises(InputError, match=says):
            open_dataset(DatasetRequest(file, columns=wrong))


def test_exif_turns_neither(master: Path, refer: Dataset, tmp_path: Path) -> None:
    rows = rows_of_new_masks(master, refer)
    for row in rows:
        row["image"]["bytes"] = with_orientation(row["image"]["bytes"], 6)
    dataset = open_dataset(DatasetRequest(str(write(rows, tmp_path / "turned.parquet"))))
    for sample in dataset.samples[:4]:
        twin = next(other for other in refer.samples if other.expression == sample.expression)
        np.testing.assert_array_equal(dataset.image(sample), refer.image(twin))
        np.testing.assert_array_equal(dataset.mask(sample), refer.mask(twin))


def test_names_of_splits(master: Path, refer: Dataset, tmp_path: Path) -> None:
    rows = rows_of_new_masks(master, refer)
    write(rows, tmp_path / "validation-0.parquet")
    write(rows[:1], tmp_path / "test-0.parquet")
    assert len(open_dataset(DatasetRequest("refcoco", root=tmp_path)).samples) == len(refer.samples)
    assert open_dataset(DatasetRequest("refcoco", root=tmp_path, split="testA")).samples
    write(rows[:2], tmp_path / "testA-0.parquet")
    two = open_dataset(DatasetRequest("refcoco", root=tmp_path, split="testA")).samples
    assert len({sample.image for sample in two}) == 2
    with pytest.raises(InputError, match=r"has no folder refcoco.*or parquet files"):
        open_dataset(DatasetRequest("refcoco", root=tmp_path, split="testB"))


def test_broken_rows_are_problems(master: Path, refer: Dataset, tmp_path: Path) -> None:
    rows = rows_of_refer(master, refer)
    rows[0]["raw_anns"] = "{"
    rows[1]["raw_anns"] = json.dumps({"segmentation": [[1, 2, 3]]})
    rows[2]["image_path"] = "coco/train2014/absent.jpg"
    rows[3]["raw_anns"] = "[]"
    rows[4]["sentences"] = [{**rows[4]["sentences"][0], "raw": " "}]
    file = write(rows, tmp_path / "annotations.parquet")
    dataset = open_dataset(DatasetRequest(str(file), root=master))
    found = {problem.where: problem.what for problem in dataset.problems}
    assert "it does not fit its columns: JSONDecodeError" in found["row 0"]
    assert "3 numbers" in found[f"object {rows[1]['ref_id']}"]
    assert "absent.jpg is not in" in found[f"object {rows[2]['ref_id']}"]
    assert "TypeError" in found["row 3"]
    assert any("is empty" in what for what in found.values()) and len(found) == 5
    left = {sample.key.split(":")[0] for sample in dataset.samples}
    assert left == {str(row["ref_id"]) for row in rows[5:]}


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "val-0.parquet"
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"val-0\.parquet' cannot be read as parquet"):
        open_dataset(DatasetRequest("refcoco", root=tmp_path))
    write([{"image": b"", "caption": "a dog"}], file)
    with pytest.raises(InputError, match="has the columns image, caption, expected image, answer"):
        open_dataset(DatasetRequest("refcoco", root=tmp_path))


def test_a_picture_that_is_missing_or_none(master: Path, refer: Dataset, tmp_path: Path) -> None:
    rows = rows_of_new_masks(master, refer)
    rows[0]["image"]["bytes"] = b"text"
    rows[1]["image"]["bytes"] = b""
    dataset = open_dataset(DatasetRequest(str(write(rows, tmp_path / "val.parquet"))))
    of_rows = [
        next(sample for sample in dataset.samples if sample.image == row["file_name"])
        for row in rows
    ]
    with pytest.raises(InputError, match="not an image"):
        dataset.image(of_rows[0])
    with pytest.raises(InputError, match="row 1 has no image in its column image"):
        dataset.mask(of_rows[1])
    assert dataset.image(of_rows[2]).ndim == 3


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write([{"image": b"", "caption": "a dog"}], tmp_path / "val.parquet")
    monkeypatch.delitem(sys.modules, "rism.evaluation.datasets.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RismError, match=r"needs pyarrow.*pip install .*\[eval\]"):
        open_dataset(DatasetRequest(str(file)))
