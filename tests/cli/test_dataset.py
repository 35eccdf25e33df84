"""Datasets: read again by the tools they are for, resumed, and what is refused."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.cli.dataset import DatasetWriter
from rism.cli.delivery import SegmentedImage
from rism.cli.inputs import find_inputs
from rism.cli.line_file import LineFile
from rism.cli.list_files import Categories
from rism.runtime.errors import OutputError
from rism.runtime.names import DatasetFormatName
from tests.cli.conftest import Run, Start
from tests.cli.dataset_readers import READERS, Reader, supervision_coco, supervision_labelme
from tests.paths import contents
from tests.runtime.result.masks import MASKS, Mask, iou, segmented

CATEGORIES = Categories(('the "left" <van> & co: 车 🚗',), {"van": 0})


def write(
    name: DatasetFormatName, masks: Mapping[str, Mask], folder: Path, *, rle: bool
) -> tuple[Path, Path]:
    """Write a dataset of an image for each mask; return its folder and that of the images."""
    images = folder / "photos"
    images.mkdir()
    for stem, mask in masks.items():
        Image.new("RGB", mask.shape[::-1]).save(images / f"{stem}.png")
    inputs = find_inputs([str(images)], expressions=["van"]).images
    dataset = DatasetWriter(
        name, CATEGORIES, inputs, output=str(folder / "out"), rle=rle, epsilon=None
    )
    assert dataset.left(inputs, resume=False, skip_existing=False) == inputs
    dataset.prepare(inputs)
    for image in inputs:
        mask = masks[image.stem]
        pixels = np.zeros((*mask.shape, 3), np.uint8)
        found = SegmentedImage(pixels, [segmented(mask, "van", 0.5)])
        dataset.add(dataset.encode(image, found))
    dataset.finish(complete=True)
    return folder / "out", images


def cases() -> Iterator[tuple[DatasetFormatName, bool, Reader]]:
    """Yield format, whether masks are written pixel by pixel, and what reads them."""
    for name, readers in READERS.items():
        for reader in readers:
            for rle in {"yolo": (False,), "png": (True,)}.get(name, (False, True)):
                if (reader, rle) not in UNFIT:
                    yield name, rle, reader


UNFIT = [
    (supervision_coco, False),  # it draws the pixels along the outline, too: docs/formats.md
    (supervision_labelme, True),  # it leaves masks out
]


@pytest.mark.parametrize(("name", "rle", "reader"), list(cases()))
def test_masks_are_read_again(
    tmp_path: Path, name: DatasetFormatName, rle: bool, reader: Reader
) -> None:
    folder, images = write(name, MASKS, tmp_path, rle=rle and name != "png")
    found = reader(folder, images, (240, 320))
    assert {category for _, category in found} == set(CATEGORIES.names)
    for stem, mask in MASKS.items():
        same = iou(found.get((stem, CATEGORIES.names[0]), np.zeros_like(mask)), mask)
        assert same == 1 if rle else same >= 0.98, stem


@pytest.fixture
def photos(picture: Path, workplace: Path) -> Path:
    """Five pictures, of which the fourth is none."""
    folder = workplace / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.gif", "sub/a.png"):
        with Image.open(picture) as image:
            image.save(folder / name)
    (folder / "d.png").write_bytes(b"none")
    return folder


def test_a_dataset_of_a_folder(run: Run, photos: Path, workplace: Path) -> None:
    shown = run("photos", "-r", "green", "nothing", "--format", "coco", code=1)
    assert shown.stderr.splitlines()[-2:] == [
        "5 images: 4 done, 1 failed; 4 masks, 4 expressions not found",
        "error: 1 of 5 images failed, the others are written",
    ]
    data = json.loads((workplace / "coco/annotations.json").read_text())
    assert [each["file_name"] for each in data["images"]] == [
        "a.png",
        "b.png",
        "c.gif",
        "sub/a.png",
    ]
    assert [each["name"] for each in data["categories"]] == ["green", "nothing"]
    assert [each["id"] for each in data["annotations"]] == [1, 2, 3, 4]
    assert [each["image_id"] for each in data["annotations"]] == [1, 2, 3, 4]
    # What failed is tried again, and only that.
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes())
    again = run("photos", "-r", "green", "nothing", "--format", "coco", "--resume")
    assert again.stderr == "5 images: 1 done, 4 skipped; 1 masks, 1 expressions not found\n"
    data = json.loads((workplace / "coco/annotations.json").read_text())
    assert [each["file_name"] for each in data["images"]][-1] == "d.png"
    assert os.listdir("coco") == ["annotations.json"]


def test_yolo_has_images_that_its_readers_know(run: Run, photos: Path, workplace: Path) -> None:
    (photos / "d.png").unlink()
    run("photos", "-r", "green", "--format", "yolo", "-o", "set")
    made = {path.relative_to("set").as_posix() for path in Path("set").rglob("*.*")}
    assert made == {
        "data.yaml", "images/a.png", "images/b.png", "images/c.png", "images/sub/a.png",
        "labels/a.txt", "labels/b.txt", "labels/c.txt", "labels/sub/a.txt",
    }  # fmt: skip
    (workplace / "set/images/b.png").unlink()  # as after a break
    again = run("photos", "-r", "green", "--format", "yolo", "-o", "set", "--skip-existing")
    assert again.stderr == "4 images: 1 done, 3 skipped; 1 masks, 0 expressions not found\n"
    assert (workplace / "set/images/b.png").read_bytes() == (photos / "b.png").read_bytes()


def test_labelme_lies_beside_the_images_and_replaces_nothing(run: Run, photos: Path) -> None:
    (photos / "d.png").unlink()
    (photos / "b.json").write_text("by hand")
    asked = ("photos", "green", "--format", "labelme", "-o", "photos")
    assert "'photos/b.json' exists: add --skip-existing" in run(*asked, code=2).stderr
    run(*asked, "--skip-existing")
    assert (photos / "b.json").read_text() == "by hand"
    assert json.loads((photos / "a.json").read_text())["imagePath"] == "a.png"


def test_a_run_that_is_killed_goes_on_where_it_was(
    start: Start, run: Run, tiny_bundle: Path, photos: Path, workplace: Path
) -> None:
    (photos / "d.png").unlink()
    for number in range(80):
        (photos / f"e{number}.png").hardlink_to(photos / "a.png")
    asked = ("photos", "green", "--format", "coco", "--workers", "1", "-o")
    process = start("run", *asked, "out", "--bundle", tiny_bundle)
    lines = workplace / "out/unfinished.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert os.listdir("out") == ["unfinished.jsonl"]
    done = lines.read_bytes().count(b"\n") - 1
    with lines.open("ab") as file:
        file.write(b'{"image": "cut o')
    other = run("photos", "red", *asked[2:], "out", "--resume", code=2).stderr
    assert "out/unfinished.jsonl is of a run with other expressions or flags" in other
    assert "out has a COCO dataset: add --resume" in run(*asked, "out", code=2).stderr
    _, counts = run(*asked, "out", "--resume").stderr.splitlines()
    assert counts.startswith(f"83 images: {83 - done} done, {done} skipped;")
    run(*asked, "whole")
    assert contents(workplace / "whole") == contents(workplace / "out")


@pytest.mark.parametrize(
    ("there", "flags", "message"),
    [
        ("out/notes.txt", ["coco"], "out holds notes.txt, no part of a COCO dataset"),
        ("out/annotations.json", ["coco"], "out has a COCO dataset: add --resume"),
        ("out/annotations.json", ["coco", "--resume"], "whole COCO dataset, nothing to resume"),
        ("out/labels/a.txt", ["yolo"], "out has a YOLO dataset: add --skip-existing"),
        ("out/data.yaml", ["yolo", "--resume"], "out/data.yaml is of a run with other expressions"),
        ("out", ["yolo"], "--format yolo writes a folder"),
    ],
)
def test_a_folder_that_holds_something_else(
    run: Run, picture: Path, workplace: Path, there: str, flags: list[str], message: str
) -> None:
    (workplace / there).parent.mkdir(parents=True, exist_ok=True)
    (workplace / there).write_text("")
    before = contents(workplace)
    shown = run(picture, "green", "-o", "out", "--format", *flags, code=2).stderr
    assert message in shown and shown.count("\n") == 1
    assert contents(workplace) == before


def test_no_space_left(
    run: Run, photos: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LineFile.append

    def full(lines: LineFile, records: list[dict[str, object]]) -> None:
        if records[0].get("image") == "b.png":
            raise OutputError("cannot write out/unfinished.jsonl: No space left on device")
        real(lines, records)

    monkeypatch.setattr(LineFile, "append", full)
    asked = ("photos", "green", "--format", "coco", "-o", "out")
    shown = run(*asked, code=1).stderr.splitlines()
    assert shown[-2:] == [
        "note: --resume goes on with out",
        "error: cannot write out/unfinished.jsonl: No space left on device",
    ]
    monkeypatch.undo()
    (photos / "d.png").unlink()
    monkeypatch.chdir(workplace)
    assert "1 skipped" in run(*asked, "--resume").stderr
    assert len(json.loads(Path("out/annotations.json").read_text())["images"]) == 3


def test_names_are_categories(run: Run, photos: Path, workplace: Path) -> None:
    (workplace / "names.txt").write_text(
        "none: sea\nthing: green\nthing: the red\n\nsky: the blue\n"
    )
    asked = ("photos/a.png", "--names", "names.txt", "--format", "coco")
    run(*asked, "-o", "one", "-e", "green", "-e", "the red")
    data = json.loads(Path("one/annotations.json").read_text())
    assert [each["name"] for each in data["categories"]] == ["none", "thing", "sky"]
    assert [each["category_id"] for each in data["annotations"]] == [2, 2]
    run(*asked, "-o", "all")
    data = json.loads(Path("all/annotations.json").read_text())
    assert [each["category_id"] for each in data["annotations"]] == [2, 2, 3]
    assert "'car' is no expression of 'names.txt'" in run(*asked, "-e", "car", code=2).stderr
