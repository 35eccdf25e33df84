"""Copies of RefCOCO in parquet files: four layouts, the same samples, images and masks."""

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

from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Dataset, Sample
from rism.runtime.errors import InputError, RismError
from rism.runtime.result.rle import encode_rle
from tests.evaluation.datasets.refcoco_files import IMAGES, read_refs, with_orientation

Rows = list[dict[str, Any]]


@pytest.fixture
def layouts(refer_root: Path, refer: Dataset) -> dict[str, Rows]:
    """The rows of the split in each layout."""
    data = json.loads((refer_root / "refcoco" / "instances.json").read_text())
    annotations = {each["id"]: each for each in data["annotations"]}
    names = {each["id"]: each["file_name"] for each in data["images"]}
    masks = {sample.key.split(":")[0]: refer.mask(sample) for sample in refer.samples}
    objects, entries = Rows(), Rows()
    images, new_masks = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for ref in read_refs(refer_root):
        if ref["split"] != "val":
            continue
        annotation, name = annotations[ref["ann_id"]], names[ref["image_id"]]
        outline, mask_hw = annotation["segmentation"], masks[str(ref["ref_id"])]
        image = {"bytes": (refer_root / IMAGES / name).read_bytes(), "path": None}
        path = f"coco/train2014/{name}"
        entries.append(ref | {"raw_anns": json.dumps(annotation), "image_path": path})
        row = new_masks.setdefault(name, {"image": image, "file_name": name, "samples": []})
        row["samples"].append(
            {
                "id": ref["ref_id"],
                "sentences": [sentence["raw"] for sentence in ref["sentences"]],
                "mask": as_rle(mask_hw),
            }
        )
        if isinstance(outline, list):
            about = {"file_name": name}
            row = images.setdefault(name, {"ref_list": [], "image_info": about, "image": image})
            row["ref_list"].append({"ref_info": ref, "ann_info": annotation})
            if len(outline) == 1:
                answer = [sentence["sent"] for sentence in ref["sentences"]]
                row = {"image": image, "answer": answer, "segmentation": outline[0]}
                objects.append(row | {"file_name": ref["file_name"]})
    by_image = {"images": [*images.values()], "new masks": [*new_masks.values()]}
    return {"objects": objects, "refer": entries} | by_image


def write(rows: Rows, file: Path, *, group: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)
    return file


def opened(source: str | Path, **changes: Any) -> Dataset:
    return open_dataset(DatasetRequest(str(source), **changes))


def assert_same(own: Dataset, sample: Sample, refer: Dataset, twin: Sample) -> None:
    np.testing.assert_array_equal(own.image(sample), refer.image(twin))
    np.testing.assert_array_equal(own.mask(sample), refer.mask(twin))


@pytest.mark.parametrize("layout", ["objects", "refer", "images", "new masks"])
def test_the_same_as_refer(
    refer_root: Path, refer: Dataset, layouts: dict[str, Rows], tmp_path: Path, layout: str
) -> None:
    rows = layouts[layout]
    half = len(rows) // 2
    write(rows[:half], tmp_path / "data" / "val-00000-of-00002.parquet")
    write(rows[half:], tmp_path / "data" / "val-00001-of-00002.parquet")
    if layout == "refer":
        (tmp_path / "coco").mkdir()
        (tmp_path / "coco" / "train2014").symlink_to(refer_root / IMAGES)
    dataset = opened("refcoco", root=tmp_path)
    assert not dataset.problems and dataset.name == "refcoco unc val"
    expected = {(s.image, s.expression.lower().rstrip("!")): s for s in refer.samples}
    assert len(expected) == len(refer.samples)
    seen = []
    for sample in dataset.samples:
        twin = expected[sample.image, sample.expression.lower().rstrip("!")]
        assert_same(dataset, sample, refer, twin)
        seen.append(twin)
    assert len(seen) == len(set(seen)) >= 4
    assert (len(seen) == len(refer.samples)) == (layout in ("refer", "new masks"))
    names = [sample.image for sample in dataset.samples]
    assert names == sorted(names, key=names.index)
    published = "unc val as published has 3,811 objects and 10,834 sentences"
    assert any(published in note for note in dataset.notes)
    assert any("one outline" in note for note in dataset.notes) == (layout == "objects")


def test_wordings(layouts: dict[str, Rows], tmp_path: Path) -> None:
    write(layouts["images"], tmp_path / "refcoco_unc_val-0.parquet")
    for wording, upper in (("raw", True), ("sent", False)):
        dataset = opened("refcoco", root=tmp_path, wording=wording, limit=3)
        assert [sample.expression.isupper() for sample in dataset.samples] == [upper] * 3


def test_a_file_by_its_path(
    refer_root: Path, refer: Dataset, layouts: dict[str, Rows], tmp_path: Path
) -> None:
    dataset = opened(write(layouts["new masks"], tmp_path / "validation.parquet"))
    assert dataset.name == "validation" and len(dataset.samples) == len(refer.samples)
    without = write(layouts["refer"], tmp_path / "annotations.parquet")
    with pytest.raises(InputError, match=r"has no images inside: name the folder"):
        opened(without)
    assert len(opened(without, root=refer_root).samples) == len(refer.samples)


def as_png(mask_hw: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask_hw.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def as_rle(mask_hw: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask_hw.shape), "counts": encode_rle(mask_hw)}


MASKS: dict[str, Callable[[np.ndarray], Any]] = {
    "rle": as_rle,
    "text": lambda mask: json.dumps(as_rle(mask)),
    "png": as_png,
    "hub": lambda mask: {"bytes": as_png(mask), "path": None},
}


@pytest.mark.parametrize("form", MASKS)
def test_columns_by_name(refer_root: Path, refer: Dataset, tmp_path: Path, form: str) -> None:
    twins = [sample for sample in refer.samples if refer.mask(sample).any()]
    rows = [
        {
            "picture": (refer_root / IMAGES / sample.image).read_bytes(),
            "caption": sample.expression if form == "rle" else [sample.expression],
            "mask": MASKS[form](refer.mask(sample)),
            "number": at,
        }
        for at, sample in enumerate(twins)
    ]
    file = write(rows, tmp_path / "own.parquet")
    columns = {"image": "picture", "expression": "caption", "id": "number"}
    dataset = opened(file, columns=columns)
    assert [s.key for s in dataset.samples] == [f"{at}:0" for at in range(len(rows))]
    assert [s.expression for s in dataset.samples] == [s.expression for s in twins]
    for sample, twin in zip(dataset.samples, twins, strict=True):
        assert_same(dataset, sample, refer, twin)
    for wrong, says in (
        ({"image": "picture"}, "no column for expression=expression, only picture, caption"),
        ({**columns, "group": "x"}, "--columns has 'group', expected image, expression, mask and"),
        (None, "name yours with --columns, or write a FILE.jsonl"),
    ):
        with pytest.raises(InputError, match=says):
            opened(file, columns=wrong)


def test_exif_turns_neither(refer: Dataset, layouts: dict[str, Rows], tmp_path: Path) -> None:
    for row in layouts["new masks"]:
        row["image"]["bytes"] = with_orientation(row["image"]["bytes"], 6)
    dataset = opened(write(layouts["new masks"], tmp_path / "turned.parquet"))
    for sample in dataset.samples[:4]:
        twin = next(other for other in refer.samples if other.expression == sample.expression)
        assert_same(dataset, sample, refer, twin)


def test_names_of_splits(refer: Dataset, layouts: dict[str, Rows], tmp_path: Path) -> None:
    rows = layouts["new masks"]
    write(rows, tmp_path / "validation-0.parquet")
    write(rows[:1], tmp_path / "test-0.parquet")
    assert len(opened("refcoco", root=tmp_path).samples) == len(refer.samples)
    assert opened("refcoco", root=tmp_path, split="testA").samples
    write(rows[:2], tmp_path / "testA-0.parquet")
    two = opened("refcoco", root=tmp_path, split="testA").samples
    assert len({sample.image for sample in two}) == 2
    with pytest.raises(InputError, match=r"has no folder refcoco.*or parquet files"):
        opened("refcoco", root=tmp_path, split="testB")


def test_broken_rows_are_problems(
    refer_root: Path, layouts: dict[str, Rows], tmp_path: Path
) -> None:
    rows = layouts["refer"]
    rows[0]["raw_anns"] = "{"
    rows[1]["raw_anns"] = json.dumps({"segmentation": [[1, 2, 3]]})
    rows[2]["image_path"] = "coco/train2014/absent.jpg"
    rows[3]["raw_anns"] = "[]"
    rows[4]["sentences"] = [{**rows[4]["sentences"][0], "raw": " "}]
    dataset = opened(write(rows, tmp_path / "annotations.parquet"), root=refer_root)
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
        opened("refcoco", root=tmp_path)
    write([{"image": b"", "caption": "a dog"}], file)
    with pytest.raises(InputError, match="has the columns image, caption, expected image, answer"):
        opened("refcoco", root=tmp_path)


def test_an_image_that_is_missing_or_none(layouts: dict[str, Rows], tmp_path: Path) -> None:
    rows = layouts["new masks"]
    rows[0]["image"]["bytes"] = b"text"
    rows[1]["image"]["bytes"] = b""
    dataset = opened(write(rows, tmp_path / "val.parquet"))
    by_image = {sample.image: sample for sample in dataset.samples}
    of_rows = [by_image[row["file_name"]] for row in rows]
    with pytest.raises(InputError, match="not an image"):
        dataset.image(of_rows[0])
    with pytest.raises(InputError, match="row 1 has no image in its column image"):
        dataset.mask(of_rows[1])
    assert dataset.image(of_rows[2]).ndim == 3


def test_without_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]
) -> None:
    file = write([{"image": b"", "caption": "a dog"}], tmp_path / "val.parquet")
    forget_modules("rism.evaluation.datasets.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RismError, match=r"needs pyarrow.*pip install .*\[eval\]"):
        opened(file)
