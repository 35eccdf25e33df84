"""Instructions from a file: what it may hold, what is looked up, what is said where it is not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.runtime import InputError, InstructionFile, Segmenter, load_image
from rism.runtime.prompt.instruction_file import Origin, RefinedInstruction, image_digest
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES, STREET

ORIGIN = Origin("owner/model", "abc", {"decoding": "greedy", "max_new_tokens": 128})


def entry(image: np.ndarray, instruction: str, refined: str) -> RefinedInstruction:
    expression = instruction.removeprefix("remove ")
    return RefinedInstruction(image_digest(image), "a.png", expression, instruction, refined)


def write(path: Path, *entries: RefinedInstruction) -> Path:
    path.write_text(InstructionFile(path.name, ORIGIN, entries).to_json(), encoding="utf-8")
    return path


def document(colours: np.ndarray) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(
        InstructionFile("x", Origin(), [entry(colours, "remove red", "cut red")]).to_json()
    )
    return data


def test_what_is_written_is_read_again(tmp_path: Path, colours: np.ndarray) -> None:
    entries = [
        entry(colours, "remove the red", "Remove the “red” half, 把红色去掉."),
        entry(colours, "remove the blue", "remove the blue"),
        entry(colours[:50], "remove the red", "something else"),
    ]
    path = write(tmp_path / "i.json", *entries)
    found = InstructionFile.open(path)
    assert len(found) == 3
    assert found.origin == ORIGIN
    assert found.to_json() == path.read_text(encoding="utf-8")
    for one in entries:
        assert found.get(one.digest, one.instruction) == one
    assert found("remove the red", colours) == entries[0].refined
    assert found("remove the red", colours[:50]) == "something else"


def test_an_image_is_known_by_size_and_pixels() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert image_digest(image) == hashlib.sha256(b"4x2\n" + image.tobytes()).hexdigest()
    assert image_digest(image) != image_digest(image.reshape(4, 2, 3))
    assert image_digest(image[:, ::2]) == image_digest(image[:, ::2].copy())


def test_what_the_reader_does_not_know_is_ignored(tmp_path: Path, colours: np.ndarray) -> None:
    data = document(colours) | {"schema_version": "1.7", "comment": [1, {"a": None}]}
    data["instructions"][0]["refined"] = "cut \U0001f468\u200d\U0001f469"
    data["refiner"] = {"temperature": 0.5, "nested": {}, "precision": "bf16"}
    data["instructions"][0]["cut"] = True
    (tmp_path / "i.json").write_text(json.dumps(data))
    found = InstructionFile.open(tmp_path / "i.json")
    assert found("remove red", colours) == "cut \U0001f468\u200d\U0001f469"
    assert found.origin.refiner == {"precision": "bf16"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "coco"}, "is not a file of instructions, expected key 'format' to be"),
        ({"schema_version": "2.0"}, r"newer rism \(format 2.0, this reads 1.x\): install a"),
        ({"schema_version": 1.0}, "key 'schema_version' is 1.0, expected"),
        ({"schema_version": "0.9"}, "key 'schema_version' is '0.9', expected a version such as"),
        ({"model": "a\nb"}, "key 'model' is 'a.nb', expected printable text"),
        ({"refiner": []}, "key 'refiner' is a list of 0, expected an object"),
        ({"instructions": {}}, "key 'instructions' is an object, expected a list"),
        ({"instructions": [7]}, r"key 'instructions\[0\]' is 7, expected an object"),
        ({"picture": "../etc"}, r"key 'instructions\[0\].picture' is '../etc', expected 64"),
        ({"picture": 7}, "picture' is 7, expected"),
        ({"refined": ["a"]}, r"key 'instructions\[0\].refined' is of type list, expected text"),
        ({"refined": " "}, "refined' is empty, expected words"),
        ({"refined": "a\0b"}, r"refined' contains the control character U\+0000"),
        ({"instruction": None}, "instruction' is of type NoneType"),
        ({"image": "a\nb"}, "image' is"),
    ],
)
def test_wrong_files(
    tmp_path: Path, colours: np.ndarray, change: dict[str, Any], expected: str
) -> None:
    data = document(colours)
    own = data["instructions"][0]
    (own if set(change) <= set(own) else data).update(change)
    (tmp_path / "i.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"^i.json.*{expected}.* with ") as error:
        InstructionFile.open(tmp_path / "i.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 200_000, b"[]", b"null", b'{"format"'])
def test_bytes_that_are_no_object(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "i.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"^i.json is not .* make it again with rism refine"):
        InstructionFile.open(tmp_path / "i.json")


def test_places_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not there, .* made with rism refine IMAGE"):
        InstructionFile.open(tmp_path / "missing.json")
    with pytest.raises(InputError, match="is not a plain file"):
        InstructionFile.open(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(InputError, match=r"large\.json is larger than 64 MiB"):
        InstructionFile.open(tmp_path / "large.json")


def test_two_texts_for_one_instruction_are_refused(tmp_path: Path, colours: np.ndarray) -> None:
    data = document(colours)
    data["instructions"] *= 2
    (tmp_path / "i.json").write_text(json.dumps(data))
    assert len(InstructionFile.open(tmp_path / "i.json")) == 1
    data["instructions"][1] = data["instructions"][1] | {"refined": "another"}
    (tmp_path / "i.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"two texts for 'remove red' and the image a\.png"):
        InstructionFile.open(tmp_path / "i.json")


def test_what_is_missing_is_said_whole_through_the_segmenter(
    tiny_master: Path, tmp_path: Path, colours: np.ndarray
) -> None:
    path = write(tmp_path / f"{'long' * 20}.json", entry(colours, "remove red", "remove the red"))
    refiner = InstructionFile.open(path)
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1, refiner=refiner)
    assert segmenter.segment(colours, "red").instruction == "remove the red"
    with pytest.raises(InputError, match=r"lacks 'remove blue' for the image \(a\.png\)") as known:
        segmenter.segment(colours, "blue")
    with pytest.raises(InputError, match=r"for the image \([0-9a-f]{12}, 160 x 90\)") as unknown:
        segmenter.segment(colours[:90], "the " * 30 + "red")
    for error in (known, unknown):
        assert "add it: rism refine IMAGE EXPRESSION --model MODEL -o longlong" in str(error.value)


def test_run_goes_on_past_an_image_that_the_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("street.png", "colour-2.png"):
        Path("in", name).write_bytes((EXAMPLES / name).read_bytes())
    write(Path("i.json"), entry(load_image(STREET), "remove it", "remove the green van"))
    flags = ["--instructions", "i.json", "--provider", "cpu", "-o", "out", "--save", "mask"]
    shown = invoke("run", "in", "it", *flags, code=1)
    errors = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith("error: in/colour-2.png: i.json lacks 'remove it' for the image")
    assert errors[1] == "error: 1 of 2 images failed, the others are written"
    with Image.open("out/street.it.mask.png") as mask:
        assert mask.getextrema() == (0, 255)


def test_two_that_reword_are_wrong_usage(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "i.json", entry(colours, "remove red", "cut red"))
    flags = ["--instructions", path, "--refiner", "a:b", "-o", tmp_path / "m.png"]
    shown = invoke("run", STREET, "red", *flags, code=2)
    assert "--instructions and --refiner both reword, expected one of them" in shown.stderr
    missing = invoke("run", STREET, "red", "--instructions", "none.json", code=1)
    assert "is not there" in missing.stderr
