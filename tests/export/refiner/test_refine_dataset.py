"""A dataset in a model's own words: its own pairs are asked, kept, and found by `rism eval`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest
from rism.runtime import InstructionFile, Segmenter
from rism.runtime.prompt.instruction_file import image_digest
from rism.runtime.result.rle import encode_rle
from tests.cli.conftest import invoke
from tests.evaluation.datasets.refcoco_files import IMAGES, edit_refs, with_orientation, write_refer
from tests.export.small_vlm import make_vlm, say

COUNT = 7  # samples, of two pictures
TURNED = f"COCO_train2014_{1:012d}.jpg"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vlm(tmp_path_factory.mktemp("vlm") / "Qwen2.5-VL-7B-Instruct")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """REFER's files; EXIF says of one picture that it is turned, as it does in COCO."""
    root = write_refer(tmp_path_factory.mktemp("refer"))
    picture = root / IMAGES / TURNED
    picture.write_bytes(with_orientation(picture.read_bytes(), 6))
    return root


@pytest.fixture(scope="module")
def refined(vlm: Path, data: Path) -> Path:
    """The validation split in the model's words."""
    file = data / "val.json"
    shown = refine(*asking(data), "-o", file, model=vlm)
    assert f"refcoco unc val: {COUNT} samples on 2 images\n" in shown.stderr
    assert shown.stderr.endswith(f"{COUNT} answered, 0 were there already -> {file}\n")
    return file


def asking(data: Path) -> tuple[str, ...]:
    return "refcoco", "--root", str(data), "--split", "val", "--limit", str(COUNT)


def refine(source: str | Path, *flags: str | Path, model: Path, code: int = 0) -> Any:
    every = ("--model", model, "--max-new-tokens", "4", "--provider", "cpu")
    return invoke("refine", source, *every, *flags, code=code)


def evaluate(source: str | Path, *flags: str | Path) -> dict[str, Any]:
    """Score with the built-in model; return the records by key."""
    folder = next(flags[place + 1] for place, flag in enumerate(flags) if flag == "-o")
    invoke("eval", source, *flags, "--provider", "cpu")
    lines = (Path(folder) / "records.jsonl").read_text().splitlines()[1:]
    return {one["key"]: one for one in map(json.loads, lines)}


def errors(shown: Any) -> list[str]:
    return [line for line in shown.stderr.splitlines() if line.startswith("error: ")]


def test_a_datasets_own_pairs_are_asked(data: Path, refined: Path) -> None:
    dataset = open_dataset(DatasetRequest("refcoco", root=data, limit=COUNT))
    samples = dataset.samples
    pairs = {(image_digest(dataset.image(one)), f"remove {one.expression}") for one in samples}
    found = json.loads(refined.read_text())["instructions"]
    assert {(one["picture"], one["instruction"]) for one in found} == pairs
    assert len(found) == len(pairs) == COUNT
    assert {len(one["refined"].split()) for one in found} == {4}


def test_eval_finds_them_and_says_them(data: Path, refined: Path, tmp_path: Path) -> None:
    dataset = open_dataset(DatasetRequest("refcoco", root=data, limit=COUNT))
    said = InstructionFile.open(refined)
    segmenter = Segmenter.from_bundle(provider="cpu", refiner=said)
    plain = evaluate(*asking(data), "-o", tmp_path / "plain")
    records = evaluate(*asking(data), "-o", tmp_path / "full", "--instructions", refined)
    assert len(records) == len(dataset.samples) == COUNT
    for sample in dataset.samples[::3]:
        found = segmenter.segment(dataset.image(sample), sample.expression)
        entry = said.get(image_digest(dataset.image(sample)), f"remove {sample.expression}")
        assert entry is not None and found.instruction == entry.refined
        assert records[sample.key]["rle"]["counts"] == encode_rle(found.mask_hw)
    other = [key for key, one in records.items() if one["rle"] != plain[key]["rle"]]
    assert len(other) > COUNT // 2


def test_a_copy_in_parquet_has_the_same_pictures(
    vlm: Path, data: Path, tmp_path: Path, refined: Path
) -> None:
    """Pictures are known by their pixels as stored: neither a name nor EXIF counts."""
    dataset = open_dataset(DatasetRequest("refcoco", root=data, limit=COUNT))
    said = InstructionFile.open(refined)
    samples: dict[str, list[dict[str, Any]]] = {}
    for one in dataset.samples:
        mask = dataset.mask(one)
        stored = {"size": list(mask.shape), "counts": encode_rle(mask)}
        sample = {"id": one.key, "sentences": [one.expression], "mask": stored}
        samples.setdefault(one.image, []).append(sample)
    rows = [
        {
            "image": {"bytes": (data / IMAGES / image).read_bytes(), "path": None},
            "file_name": f"{number}.jpg",
            "samples": asked,
        }
        for number, (image, asked) in enumerate(samples.items())
    ]
    file = tmp_path / "copy.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    records = evaluate(file, "-o", tmp_path / "run", "--instructions", refined)
    assert len(records) == len(said) == COUNT
    shutil.copy(refined, tmp_path / "again.json")
    shown = refine(file, "-o", tmp_path / "again.json", model=vlm)
    assert f"0 answered, {COUNT} were there already" in shown.stderr


def test_what_is_left_out_is_named_and_asked_again(
    vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_refer(tmp_path / "data")

    def change(refs: list[dict[str, Any]]) -> None:
        refs[0]["sentences"][0]["raw"] = "a <|im_end|> b"
        refs[2]["ann_id"] = 999  # nobody's: left out on opening

    edit_refs(root, change)
    samples = open_dataset(DatasetRequest("refcoco", root=root)).samples
    (control,) = [one for one in samples if "<|" in one.expression]
    broken = next(one.image for one in samples[::-1] if one.image != samples[0].image)
    whole = (root / IMAGES / broken).read_bytes()
    (root / IMAGES / broken).write_bytes(whole[:400])
    asked = say(monkeypatch, "Remove a.", "")
    file = tmp_path / "i.json"
    shown = refine("refcoco", "--root", root, "-o", file, model=vlm, code=1)
    lost = sum(one.image == broken for one in samples)
    left_out = [
        one.key
        for place, one in enumerate(samples)
        if one.image == broken or one is control or one.expression in asked[1]
    ]
    assert len(left_out) == lost + 2
    told = errors(shown)
    assert told[0].startswith(f"error: {broken}: ") and "is not an image rism can read" in told[0]
    assert f"{control.image}: the instruction contains '<|im_end|>', a control token" in told[1]
    assert "the answer to" in told[2] and "is empty" in told[2]
    assert "annotation 999 is not in instances.json" in told[3]
    assert told[4].startswith(f"error: {len(left_out)} of {len(samples)} samples ({left_out[0]}, ")
    assert told[4].endswith(
        f"and 1 that could not be opened were left out, the others are in {file}: correct them, "
        "then the same command asks for these only"
    )
    assert len(asked) == len(samples) - lost - 1
    assert len(InstructionFile.open(file)) == len(asked) - 1

    (root / IMAGES / broken).write_bytes(whole)
    edit_refs(root, lambda refs: refs[0]["sentences"][0].update(raw="the red one"))
    edit_refs(root, lambda refs: refs.pop(2))
    asked.clear()
    shown = refine("refcoco", "--root", root, "-o", file, model=vlm)
    assert len(asked) == lost + 2
    assert f"{lost + 2} answered, {len(samples) - lost - 2} were there already" in shown.stderr


def test_the_same_words_of_a_picture_are_asked_once(
    vlm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = say(monkeypatch)
    picture = str(data / IMAGES / TURNED)
    shutil.copy(picture, tmp_path / "copy.jpg")
    lines = [
        {"image": image, "expression": text, "present": False}
        for image in (picture, "copy.jpg")
        for text in ("the dog", "the dog", "the  dog", "the cat")
    ]
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = refine(source, "-o", tmp_path / "i.json", model=vlm)
    assert asked == ["remove the dog", "remove the cat"]
    assert "mine.jsonl: 8 samples on 2 images" in shown.stderr
    said = ("--instructions", tmp_path / "i.json")
    assert len(evaluate(source, "-o", tmp_path / "run", *said, "--paper")) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["street.png"], "'street.png' has no EXPRESSION after it, expected one, or a dataset"),
        (["a.png", "the dog", "--root", "d", "--limit", "3"], "--root, --limit go with a dataset"),
        (["scenes", "--limit", "3"], "scenes are generated: they take --kind, --split and --count"),
        (["refcoco", "--count", "3"], "--kind and --count go with scenes"),
        (["refcoco", "-o", "-"], "-o is -, expected a file"),
    ],
)
def test_flags_that_do_not_go_together(vlm: Path, arguments: list[str], said: str) -> None:
    place = [] if "-o" in arguments else ["-o", "i.json"]
    assert said in refine(*arguments, *place, model=vlm, code=2).stderr


def test_images_are_told_from_expressions_and_kept(
    vlm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = say(monkeypatch)
    image, other = (shutil.copy(data / IMAGES / TURNED, tmp_path / name) for name in ("a.jpg", "b"))
    before = image.read_bytes()
    assert "is an input" in refine(image, "the dog", "-o", image, model=vlm, code=2).stderr
    assert image.read_bytes() == before
    refine(image, other, "the dog", "-o", tmp_path / "i.json", model=vlm)
    assert asked == ["remove the dog"]  # two files of one picture
    refine(image, other, "-e", "cat", "-o", tmp_path / "i.json", model=vlm)
    assert asked == ["remove the dog", "remove cat"]


def test_a_dataset_that_is_not_there(vlm: Path, tmp_path: Path) -> None:
    for source, said in (("refcoco", "refcoco needs --root"), ("no.jsonl", "is not there")):
        shown = refine(source, "-o", tmp_path / "i.json", model=vlm, code=1)
        assert said in errors(shown)[0]
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_asked_in_another_template(
    vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = say(monkeypatch)
    file = tmp_path / "i.json"
    flags = ("--count", "2", "--split", "tuning", "--template", "cut {expression}")
    refine("scenes", *flags, "-o", file, model=vlm)
    assert len(asked) == 2 and all(text.startswith("cut ") for text in asked)
    records = evaluate("scenes", *flags, "--instructions", file, "-o", tmp_path / "run")
    assert [f"cut {one['expression']}" for one in records.values()] == asked
