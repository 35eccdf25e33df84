"""Nothing that was there is lost: inputs are no outputs, and results do not replace each other."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from rism.cli import outputs
from rism.cli.console import UsageError
from rism.cli.outputs import check_outputs
from tests.cli.conftest import Run
from tests.paths import contents


@pytest.fixture(autouse=True)
def images(picture: Path, workplace: Path) -> None:
    """a.png, b.png and in/a.png are in the current folder."""
    for name in ("a.png", "b.png", "in/a.png"):
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_bytes(picture.read_bytes())


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "red", "-o", "a.png"],
        ["a.png", "red", "-o", "in/../a.png"],
        ["a.png", "red", "-o", "link.png"],
        ["link.png", "red", "-o", "a.png"],
        ["a.png", "red", "-o", "hard.png"],
        ["a.png", "red", "--instructions", "words.json", "-o", "words.json"],
        ["a.png", "b.png", "green"],  # the mask of a.png would go into b.png
    ],
)
def test_an_input_is_never_an_output(run: Run, workplace: Path, arguments: list[str]) -> None:
    (workplace / "link.png").symlink_to("a.png")
    (workplace / "hard.png").hardlink_to(workplace / "a.png")
    (workplace / "words.json").write_text("{}")
    (workplace / "a.green.mask.png").hardlink_to(workplace / "b.png")
    before = contents(workplace)
    shown = run(*arguments, code=2)
    assert "is an input" in shown.stderr and shown.stderr.count("\n") == 1
    assert contents(workplace) == before


def test_long_names_stay_apart(run: Run, picture: Path, workplace: Path) -> None:
    names = [f"{'照片' * 20}{number}.png" for number in "一二"]
    for name in names:
        (workplace / name).write_bytes(picture.read_bytes())
    run(*names, "green", "GREEN", "--save", "mask")
    made = [name for name in os.listdir(workplace) if name.endswith(".mask.png")]
    assert len(made) == 4
    run(names[0], "red" * 30 + "1", "--save", "mask")
    run(names[0], "red" * 30 + "2", "--save", "mask")
    assert len([name for name in os.listdir(workplace) if name.endswith(".mask.png")]) == 6


def test_another_expression_has_another_name_and_a_replaced_file_is_named(
    run: Run, workplace: Path
) -> None:
    assert run("a.png", "green").stderr == ""
    assert run("a.png", "red").stderr == ""
    assert run("a.png", "red").stderr == (
        "note: a.red.mask.png and 1 more of an earlier run will be replaced\n"
    )
    assert {name for name in os.listdir(workplace) if ".mask" in name} == {
        "a.green.mask.png", "a.red.mask.png",
    }  # fmt: skip


def test_sub_folders_are_kept(run: Run, workplace: Path) -> None:
    shown = run(".", "green", "-r", "--save", "mask", "--json", "-o", "out")
    files = [entry["files"] for entry in json.loads(shown.stdout)]
    assert files == [[f"out/{name}.green.mask.png"] for name in ("a", "b", "in/a")]
    assert all((workplace / file).is_file() for (file,) in files)


def test_an_expression_in_another_encoding(run: Run) -> None:
    message = "'caf\ufffd' is not valid UTF-8: type it in UTF-8"
    assert message in run("a.png", "caf\udce9", code=1).stderr
    assert message in run("a.png", "red", "--magnets", "caf\udce9", code=2).stderr


def test_several_expressions_may_go_to_a_folder_without_a_slash(run: Run, workplace: Path) -> None:
    run("a.png", "red", "green", "-o", "out", "--save", "mask")
    assert sorted(os.listdir(workplace / "out")) == ["a.green.mask.png", "a.red.mask.png"]


def test_one_broken_image_of_a_list_does_not_end_it(run: Run, workplace: Path) -> None:
    (workplace / "b.png").write_bytes(b"none")
    shown = run("a.png", "b.png", "in/a.png", "red", "--jsonl", "-o", "r.json", code=1)
    assert shown.stderr.splitlines()[-1] == "error: 1 of 3 images failed, the others are written"
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "b.png", "in/a.png"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert json.loads((workplace / "r.json").read_text()) == lines
    with Image.open("a.png") as image:
        assert lines[0]["rle"]["size"] == [image.height, image.width]


def test_outputs_that_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("b.png")
    (tmp_path / "folder").symlink_to(".")
    one = tmp_path / "b.png"
    for other in (tmp_path / "link.png", tmp_path / "folder/b.png", tmp_path / "B.png"):
        with pytest.raises(UsageError, match="are one file"):
            check_outputs([one, other], [])
    assert check_outputs([one, tmp_path / "c.png", Path("/dev/null"), Path("/dev/null")], []) == []
    one.write_bytes(b"")
    assert check_outputs([one], [tmp_path / "missing.png"]) == [one]
    with one.open() as stream, pytest.raises(UsageError, match=r"is an input \(stdin\)"):
        check_outputs([one], [stream.fileno()])


def test_a_terminal_gets_no_png(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = os.openpty()
    shown = run("a.png", "red", "-o", os.ttyname(terminal), code=2)
    assert "bytes of a PNG to a terminal" in shown.stderr
    with os.fdopen(terminal, "w") as stdout:
        monkeypatch.setattr(outputs.sys, "stdout", stdout)
        with pytest.raises(UsageError, match="bytes of a PNG to a terminal"):
            outputs.choose_destination(
                "-", save=None, as_json=False, images=1, expressions=1, from_folder=False
            )
    os.close(master)
