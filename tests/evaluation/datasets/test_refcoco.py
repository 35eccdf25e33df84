"""REFER's layout: read whole, and what is wrong with it named."""

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.datasets.sample import Dataset
from rism.evaluation.datasets.stored_images import read_stored
from rism.runtime.errors import InputError
from rism.runtime.image.loading import load_image
from tests.evaluation.datasets.refcoco_files import (
    IMAGES,
    edit_instances,
    edit_refs,
    read_refs,
    with_orientation,
    write_refer,
)

FIRST = "COCO_train2014_000000000000.jpg"


@pytest.fixture
def root(refer_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(refer_root, tmp_path / "data"))


def opened(root: Path, **changes: Any) -> Dataset:
    return open_dataset(DatasetRequest(**{"source": "refcoco", "root": root} | changes))


def problems(dataset: Dataset) -> dict[str, str]:
    return {problem.where: problem.what for problem in dataset.problems}


def test_every_sentence_of_the_split_is_a_sample(refer_root: Path, refer: Dataset) -> None:
    expected = {
        f"{ref['ref_id']}:{sentence['sent_id']}": sentence["raw"].strip()
        for ref in read_refs(refer_root)
        for sentence in ref["sentences"]
        if ref["split"] == "val"
    }
    assert {sample.key: sample.expression for sample in refer.samples} == expected
    assert refer.name == "refcoco unc val" and not refer.problems
    assert "unc val as published has 3,811 objects and 10,834 sentences" in refer.notes[0]
    assert all(sample.present for sample in refer.samples)


def test_samples_of_an_image_stand_together(refer_root: Path, refer: Dataset) -> None:
    apart = [ref["image_id"] for ref in read_refs(refer_root) if ref["split"] == "val"]
    together = [sample.image for sample in refer.samples]
    assert len(set(together)) == len(set(apart)) == 4
    assert sum(a != b for a, b in pairwise(apart)) > 3
    assert sum(a != b for a, b in pairwise(together)) == 3


def test_wordings_and_limit(refer_root: Path) -> None:
    raw = [sample.expression for sample in opened(refer_root).samples]
    sent = [sample.expression for sample in opened(refer_root, wording="sent").samples]
    assert all(text.isupper() for text in raw)
    assert [text.lower().rstrip("!") for text in raw] == sent
    some = opened(refer_root, limit=3)
    assert [sample.expression for sample in some.samples] == raw[:3]
    assert some.notes == opened(refer_root).notes


def test_protocols_and_partitions(tmp_path: Path) -> None:
    old = write_refer(tmp_path / "old", dataset="refcoco+", protocol=0)
    dataset = open_dataset(DatasetRequest("refcoco+", root=old))
    assert dataset.name == "refcoco+ unc val" and len(dataset.samples) > 10
    google = open_dataset(DatasetRequest("refcoco+", root=old, split_by="google"))
    assert google.name == "refcoco+ google val"


def test_other_places_of_the_images(root: Path) -> None:
    place = root / IMAGES
    for folder in ("images/train2014", "train2014", "coco/train2014"):
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        place = Path(shutil.move(place, root / folder))
        dataset = opened(root)
        assert dataset.image(dataset.samples[0]).shape == (96, 128, 3)


def test_exif_turns_neither_image_nor_mask(root: Path) -> None:
    dataset = opened(root)
    first = dataset.samples[0]
    expected, mask = dataset.image(first), dataset.mask(first)
    file = root / IMAGES / FIRST
    plain = file.read_bytes()
    for orientation in range(1, 9):
        file.write_bytes(with_orientation(plain, orientation))
        turned = load_image(file)
        assert (turned.shape[:2] == (128, 96)) == (orientation >= 5)
        assert (orientation == 1) == np.array_equal(turned, expected)
        np.testing.assert_array_equal(dataset.image(first), expected)
        np.testing.assert_array_equal(dataset.mask(first), mask)
        np.testing.assert_array_equal(read_stored(file.read_bytes()), expected)


def broken(data: dict[str, Any]) -> None:
    by_id = {entry["id"]: entry for entry in data["annotations"]}
    by_id[1]["segmentation"] = [[1, 1, 5, 5, 9]]
    by_id[100]["segmentation"] = {"size": [96, 128], "counts": [96 * 128]}
    by_id[102]["image_id"] = 3
    data["annotations"].remove(by_id[200])
    data["images"] = [entry for entry in data["images"] if entry["id"] != 3]


def test_broken_annotations_are_problems(root: Path) -> None:
    whole = opened(root)
    edit_instances(root, broken)
    dataset = opened(root)
    found = problems(dataset)
    assert "polygon 0 of annotation 1 of ref 1001 has 5 numbers" in found["ref 1001"]
    assert "is of 128 x 96 pixels, its image of 96 x 128" in found["ref 1100"]
    assert "annotation 102 is of another image than 1" in found["ref 1102"]
    assert "annotation 200 is not in instances.json" in found["ref 1200"]
    assert "image 3 is not in instances.json" in found["ref 1301"]
    kept = {sample.key for sample in dataset.samples}
    assert kept == {s.key for s in whole.samples if f"ref {s.key.split(':')[0]}" not in found}
    assert dataset.notes == whole.notes


def test_missing_images_are_problems(root: Path) -> None:
    (root / IMAGES / FIRST).unlink()
    dataset = opened(root)
    assert set(problems(dataset)) == {"ref 1000", "ref 1001", "ref 1002"}
    assert all(FIRST in what and IMAGES in what for what in problems(dataset).values())
    assert problems(dataset)["ref 1002"].endswith("(3 sentences)")
    assert FIRST not in {sample.image for sample in dataset.samples}
    for file in (root / IMAGES).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"nothing of refcoco unc val .*and 10 more"):
        opened(root)


def test_sentences_that_are_none(root: Path) -> None:
    def change(refs: list[dict[str, Any]]) -> None:
        entry = next(ref for ref in refs if ref["ref_id"] == 1100)
        entry["sentences"] = [
            {"raw": "  ", "sent_id": 1},
            {"sent": "only", "sent_id": 2},
            {"raw": "the first", "sent_id": 3},
            {"raw": "again", "sent_id": 3},
            "text",
            {"raw": "x" * 5000, "sent_id": 5},
        ]
        next(ref for ref in refs if ref["ref_id"] == 1101)["sentences"] = None

    edit_refs(root, change)
    dataset = opened(root)
    found = problems(dataset)
    assert found["1100:1"] == "the sentence is empty under 'raw'"
    assert "None, expected text under 'raw'" in found["1100:2"]
    assert "twice" in found["1100:3"]
    assert "expected text" in found["1100:#4"]
    assert "longer than 4096" in found["1100:5"]
    assert found["ref 1101"] == "it has no sentences"
    assert [s.expression for s in dataset.samples if s.key == "1100:3"] == ["the first"]


def test_no_image_outside_of_its_folder(root: Path) -> None:
    for name in ("../secret.jpg", "/etc/passwd", "a/b.jpg", "", ".", None, "a\0"):
        edit_instances(root, lambda data, name=name: data["images"][0].update(file_name=name))
        dataset = opened(root)
        assert "its image" in problems(dataset)["ref 1000"]
        assert FIRST not in {sample.image for sample in dataset.samples}


def test_images_that_cannot_be_used(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / IMAGES / FIRST)
    dataset = opened(root)
    with pytest.raises(InputError, match=r"is 64 x 48 pixels, and instances\.json says 128 x 96"):
        dataset.mask(dataset.samples[0])
    (root / IMAGES / FIRST).write_bytes(b"hello")
    with pytest.raises(InputError, match=f"{FIRST}.*not an image"):
        dataset.image(dataset.samples[0])
    with pytest.raises(InputError, match=f"{FIRST} cannot be read"):
        dataset.mask(dataset.samples[0])


def test_wrong_roots_say_what_is_there(root: Path, tmp_path: Path) -> None:
    def message(**changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            opened(**{"root": root} | changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "needs --root" in message(root=None)
    assert "is not a folder" in message(root=tmp_path / "nowhere")
    assert f"one folder above, '{root}'" in message(root=root / "refcoco")
    assert "there is images, refcoco: unpack refcocog.zip" in message(source="refcocog")
    assert "refs(google).p, refs(unc).p: choose one with --split-by" in message(split_by="umd")
    assert "no split 'test', it has val (11), testA (3)" in message(split="test")
    assert "--split is 'dev', expected one of train, val" in message(split="dev")
    assert "--split-by is 'me', expected one of unc" in message(split_by="me")
    assert "--gt-merge is 'xor'" in message(gt_merge="xor")
    assert "--wording is 'loud'" in message(wording="loud")
    assert "--limit is 0" in message(limit=0)
    assert "'cityscapes' is not a dataset" in message(source="cityscapes")
    shutil.rmtree(root / "images")
    assert "expected them in one of images/mscoco/images/train2014" in message()
    (root / "refcoco" / "instances.json").unlink()
    assert "instances.json' is not there; there is refs(google).p, refs(unc).p" in message()


def test_damaged_files(root: Path) -> None:
    for text, message in (
        ("{", "damaged or not JSON"),
        ("[" * 100_000, "damaged or not JSON"),
        ("[]", "no list 'annotations'"),
        (json.dumps({"annotations": []}), "no list 'images'"),
    ):
        (root / "refcoco" / "instances.json").write_text(text)
        with pytest.raises(InputError, match=message):
            opened(root)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(InputError, match="holds no list of REFER's entries"):
        opened(root)
