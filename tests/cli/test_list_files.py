"""Lists of images and expressions, and runs that read them and go on with FILE.jsonl."""

import json
from pathlib import Path

import pytest

from rism.cli.list_files import read_list, read_names
from rism.runtime.errors import InputError
from tests.cli.conftest import Run


def test_both_forms(tmp_path: Path) -> None:
    text, lines = tmp_path / "list.txt", tmp_path / "list.jsonl"
    text.write_text("\ufeffa.png\tthe  van\ta car\r\n\nsub/b c.png\r\na.png\tvan\n")
    found = read_list(text, ["sky"])
    assert [(each.name, each.expressions, each.id) for each in found] == [
        ("a.png", ("the van", "a car", "van"), None),
        ("sub/b c.png", ("sky",), None),
    ]
    assert {each.folder for each in found} == {tmp_path}
    lines.write_text(
        '{"image": "a.png", "expressions": ["x", "y"], "id": 7}\n{"image": "b.png", "id": 0}\n'
        '{"image": "a.png", "expression": "z", "id": 7}\n'
    )
    assert [(each.expressions, each.id) for each in read_list(lines, ["sky"])] == [
        (("x", "y", "z"), 7), (("sky",), 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "lists no image"),
        ('{"image": "a.png"}', "line 1: there is no expression, in the line or as an argument"),
        ('{"image": "a.png", "expressions": []}', "line 1: its 'expressions' are no list of texts"),
        ('{"image": "a.png", "expressions": [3]}', "line 1: the expression is of type int"),
        ('{"image": "a.png", "expression": " "}', "line 1: the expression is empty"),
        ('\n{"image": 3}', "line 2: it has no text 'image'"),
        ('[["a.png"]]', "line 1: it has no text 'image'"),
        ("a.png", "line 1: it is not JSON"),
        ("[" * 100_000, "line 1: it is not JSON"),
        ('{"image": "a\\u0000", "expression": "x"}', "line 1: there is no path of an image"),
        ('{"image": "a", "expression": "x", "id": true}', "line 1: its id is True"),
        ('{"image": "a", "expression": "x", "id": 1}\n{"image": "b", "expression": "x", "id": 1}',
         "line 2: its id 1 is that of line 1"),
        ('{"image": "a", "expression": "x", "id": 1}\n{"image": "a", "expression": "y", "id": 2}',
         "line 2: line 1 gives the same image another id"),
        ('{"image": "a", "expression": "x", "id": 1}\n{"image": "b", "expression": "x"}',
         "line 2 has no id and others have"),
        (b"\xff", "is not UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, lines: str | bytes, message: str) -> None:
    file = tmp_path / "list.jsonl"
    file.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(InputError) as caught:
        read_list(file, [])
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("van: the green van\ncar\nvan: the red: van\n")
    found = read_names(file)
    assert found.names == ("van", "car")
    assert found.indices == {"the green van": 0, "car": 1, "the red: van": 0}
    for text, message in (("a\nb: a\n", "line 2: 'a' is the expression of line 1"),
                          ("\n", "has no names"), (": x", "line 1: the name is")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_names(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "none")


@pytest.fixture
def listed(picture: Path, workplace: Path) -> Path:
    """A list of two pictures and one that is missing, with expressions of their own."""
    for name in ("in/a.png", "in/b.png"):
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_bytes(picture.read_bytes())
    file = workplace / "list.jsonl"
    file.write_text(
        '{"image": "in/a.png", "expressions": ["green", "red"], "id": 5}\n'
        '{"image": "gone.png", "expression": "green", "id": 6}\n'
        '{"image": "in/b.png", "id": 9}\n'
    )
    return file


def test_each_image_has_its_expressions(run: Run, listed: Path, workplace: Path) -> None:
    shown = run("blue", "--list", "list.jsonl", "-o", "out/", "--save", "mask", "--jsonl", code=1)
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(each["image"], each.get("expression"), each.get("id")) for each in records] == [
        ("in/a.png", "green", 5), ("in/a.png", "red", 5), ("gone.png", None, None),
        ("in/b.png", "blue", 9),
    ]  # fmt: skip
    assert sorted(path.name for path in (workplace / "out").rglob("*.png")) == [
        "a.green.mask.png", "a.red.mask.png", "b.blue.mask.png",
    ]  # fmt: skip
    assert "1 of 3 images failed" in shown.stderr
    nothing = run("in/", "--list", "list.jsonl", code=1).stderr
    assert "line 3: there is no expression, in the line or as an argument" in nothing
    run("blue", "--list", "list.jsonl", "--format", "coco", code=1)
    data = json.loads((workplace / "coco/annotations.json").read_text())
    assert [(each["id"], each["file_name"]) for each in data["images"]] == [
        (5, "in/a.png"), (9, "in/b.png"),
    ]  # fmt: skip


def test_lines_are_appended_and_resumed(run: Run, listed: Path, workplace: Path) -> None:
    asked = ("blue", "--list", "list.jsonl", "-o", "found.jsonl")
    stopped = run(*asked, "--on-error", "stop", "--workers", "1", code=1).stderr
    assert stopped.splitlines()[-1].startswith("error: gone.png: ")
    file = workplace / "found.jsonl"
    lines = file.read_bytes()
    assert lines.count(b"\n") == 2
    file.write_bytes(lines[:-20])  # the second is cut off
    assert "'found.jsonl' exists: add --resume" in run(*asked, code=2).stderr
    resumed = run(*asked, "--resume", code=1).stderr
    assert "3 images: 2 done, 1 failed; " in resumed
    records = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [(each["image"], each.get("expression")) for each in records] == [
        ("in/a.png", "green"), ("in/a.png", "red"), ("gone.png", None), ("in/b.png", "blue"),
    ]  # fmt: skip
    (workplace / "gone.png").write_bytes((workplace / "in/a.png").read_bytes())
    assert "3 images: 1 done, 2 skipped; " in run(*asked, "--resume").stderr
    assert "3 images: 0 done, 3 skipped; " in run(*asked, "--resume").stderr
    file.write_text("[1]\n")
    assert (
        "line 1 of found.jsonl is not of an earlier run" in run(*asked, "--resume", code=1).stderr
    )


def test_existing_masks_are_skipped(run: Run, listed: Path, workplace: Path) -> None:
    asked = ("in", "green", "--save", "mask", "-o", "out/", "--skip-existing")
    run(*asked)
    (workplace / "out/b.green.mask.png").unlink()
    assert run(*asked).stderr.startswith("2 images: 1 done, 1 skipped; ")


def test_a_list_may_name_images_elsewhere(run: Run, listed: Path, workplace: Path) -> None:
    (workplace / "lists").mkdir()
    (workplace / "lists/a.txt").write_text(f"../in/a.png\tred\n{workplace}/in/b.png\tred\n")
    run("--list", "lists/a.txt", "--format", "yolo", "-o", "out")
    assert sorted(path.name for path in (workplace / "out/images").iterdir()) == ["a.png", "b.png"]
    run("--list", "lists/a.txt", "--format", "coco", "-o", "coco")
    data = json.loads((workplace / "coco/annotations.json").read_text())
    assert [each["file_name"] for each in data["images"]] == ["a.png", "b.png"]
