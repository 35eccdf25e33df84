"""FILE.jsonl: every way to say a mask, and every error by its line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rism.evaluation.datasets.jsonl import JsonLines
from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Dataset
from rism.runtime.errors import InputError
from tests.evaluation.datasets.refcoco_files import runs, with_orientation

TRUE_HW = np.zeros((30, 40), bool)
TRUE_HW[5:20, 10:25] = True
OUTLINE = [10, 5, 25, 5, 25, 20, 10, 20]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "pictures" / "a.png")
    Image.fromarray(image).save(tmp_path / "b.jpg", quality=95)
    Image.fromarray(TRUE_HW).save(tmp_path / "mask.png")
    return tmp_path


def write(folder: Path, *entries: Any) -> Path:
    file = folder / "own.jsonl"
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    file.write_text("\n".join(lines) + "\n")
    return file


def entry(**changes: Any) -> dict[str, Any]:
    found = {"image": "pictures/a.png", "expression": "the red cup", "mask": "mask.png"} | changes
    return {key: value for key, value in found.items() if value is not ...}


def opened(file: Path, **changes: Any) -> Dataset:
    return open_dataset(DatasetRequest(str(file), **changes))


def test_masks_said_in_every_way(folder: Path) -> None:
    compressed = coco_mask.encode(np.asfortranarray(TRUE_HW.astype(np.uint8)))
    ways = [
        "mask.png",
        str(folder / "mask.png"),
        runs(TRUE_HW),
        {"size": compressed["size"], "counts": compressed["counts"].decode()},
        [OUTLINE],
        OUTLINE,
    ]
    dataset = opened(write(folder, *(entry(mask=way) for way in ways)))
    assert not dataset.problems and len(dataset.samples) == len(ways)
    for sample in dataset.samples:
        np.testing.assert_array_equal(dataset.mask(sample), TRUE_HW)
        assert dataset.image(sample).shape == (30, 40, 3)


def test_fields_and_order(folder: Path) -> None:
    file = write(
        folder,
        entry(id="first", group="cups"),
        "",
        entry(image="b.jpg", id=7),
        entry(expression="  a \n dog ", present=False, mask=...),
        entry(image="b.jpg"),
    )
    dataset = open_dataset(DatasetRequest(str(file), gt_merge="union"))
    assert isinstance(dataset, JsonLines) and dataset.name == "own.jsonl" and not dataset.problems
    assert [(s.key, s.image, s.group, s.present) for s in dataset.samples] == [
        ("first", "pictures/a.png", "cups", True),
        ("line 4", "pictures/a.png", "", False),
        ("7", "b.jpg", "", True),
        ("line 5", "b.jpg", "", True),
    ]
    assert dataset.samples[1].expression == "a dog"
    assert dataset.mask(dataset.samples[1]).shape == (30, 40)
    assert not dataset.mask(dataset.samples[1]).any()
    limited = open_dataset(DatasetRequest(str(file), limit=2)).samples
    assert [sample.key for sample in limited] == ["first", "line 4"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_pictures_are_upright(folder: Path, orientation: int) -> None:
    file = folder / "b.jpg"
    file.write_bytes(with_orientation(file.read_bytes(), orientation))
    upright_hw = TRUE_HW if orientation < 5 else TRUE_HW.T
    dataset = opened(write(folder, entry(image="b.jpg", mask=runs(upright_hw))))
    (sample,) = dataset.samples
    assert dataset.image(sample).shape[:2] == dataset.mask(sample).shape == upright_hw.shape


BAD_LINES: list[tuple[Any, str]] = [
    ("{", "it is not JSON "),
    ("[" * 50_000, "it is not JSON "),
    ("[1]", "not a JSON object"),
    ("{}", "no 'image', only nothing; known are image, expression, mask"),
    (entry(image=...), "no 'image', only expression, mask"),
    (entry(expression=None), "no 'expression'"),
    (entry(mask=...), "no 'mask'"),
    (entry(image="c.png"), "'image' 'c.png' is not there"),
    (entry(image=""), "'image' is '', expected a path"),
    (entry(image=["a.png"]), "expected a path"),
    (entry(image="x" * 5000), "expected a path"),
    (entry(image="x" * 4000), "is not there"),
    (entry(mask="pictures"), "'mask' 'pictures' is not there"),
    (entry(expression="  "), "'expression': the sentence is empty"),
    (entry(expression=5), "'expression': the sentence is 5, expected text"),
    (entry(id=""), "'id' is empty"),
    (entry(id=True), "'id' is not printable text"),
    (entry(group="a\nb"), "'group' is not printable text"),
    (entry(present="yes"), "'present' is neither true nor false"),
    (entry(present=False), "a mask although 'present' is false"),
    (entry(mask=[[1, 2, 3]]), "polygon 0 of the mask of line 2 has 3 numbers"),
    (entry(id="line 1"), "its id 'line 1' is that of line 1"),
]


def test_bad_lines_are_problems(folder: Path) -> None:
    for line, message in BAD_LINES:
        dataset = opened(write(folder, entry(), line, entry()))
        (problem,) = dataset.problems
        assert problem.where == "line 2" and message in problem.what
        assert [sample.key for sample in dataset.samples] == ["line 1", "line 3"]


def mask_of(image: Image.Image, folder: Path) -> np.ndarray:
    image.save(folder / "mask.png")
    dataset = opened(write(folder, entry()))
    return dataset.mask(dataset.samples[0])


def test_masks_as_pictures_of_any_kind(folder: Path) -> None:
    gray = TRUE_HW * np.uint8(255)
    palette = Image.fromarray(TRUE_HW.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 0])
    kinds = [
        Image.fromarray(gray),
        Image.fromarray(np.where(TRUE_HW, np.uint8(128), np.uint8(127))),
        Image.fromarray(np.repeat(gray[..., None], 3, axis=2)),
        Image.fromarray(gray.astype(np.uint16) * 257),
        palette,
    ]
    for kind in kinds:
        np.testing.assert_array_equal(mask_of(kind, folder), TRUE_HW)


def test_masks_that_could_mean_two_things_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: the mask .*nowhere brighter than 1 of 255"):
        mask_of(Image.fromarray(TRUE_HW.astype(np.uint8)), folder)
    with pytest.raises(InputError, match=r'black all over.*"present": false'):
        mask_of(Image.new("L", (40, 30)), folder)
    with pytest.raises(InputError, match="transparent in places"):
        mask_of(Image.new("RGBA", (40, 30), (255, 255, 255, 0)), folder)
    with pytest.raises(InputError, match="is 8 x 8 pixels, its image 40 x 30"):
        mask_of(Image.new("L", (8, 8), 255), folder)
    (folder / "mask.png").write_bytes(b"text")
    dataset = opened(folder / "own.jsonl")
    with pytest.raises(InputError, match=r"line 1: .*mask.png.* is not an image"):
        dataset.mask(dataset.samples[0])
    dataset = opened(write(folder, entry(mask={"size": [5, 5], "counts": [25]})))
    with pytest.raises(InputError, match="RLE of the mask of line 1 is of 5 x 5"):
        dataset.mask(dataset.samples[0])


def test_a_picture_that_is_none(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"text")
    dataset = opened(write(folder, entry(image="b.jpg")))
    with pytest.raises(InputError, match=r"line 1: .*is not an image"):
        dataset.image(dataset.samples[0])


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nothing of .* can be scored; .*empty"):
        opened(write(folder))
    with pytest.raises(InputError, match="line 1: it is not JSON"):
        opened(write(folder, "nonsense"))
    with pytest.raises(InputError, match=r"'absent\.jsonl' is not there"):
        open_dataset(DatasetRequest("absent.jsonl"))
    (folder / "own.jsonl").write_bytes(json.dumps(entry()).encode() + b"\n{\xff}\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        opened(folder / "own.jsonl")
    (folder / "own.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(entry()).encode() + b"\r\n")
    assert len(opened(folder / "own.jsonl").samples) == 1
