"""What is an image and what an expression; which images a folder has."""

from pathlib import Path

import pytest

from rism.cli.console import UsageError
from rism.cli.inputs import find_inputs, sort_arguments
from rism.runtime.errors import InputError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with images, an image of no suffix, and folders called as things are."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "scan", "cup/c.png", "the van/d.png", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "flags", "images", "expressions"),
    [
        (["a.png", "b.JPG", "the green van"], [], ["a.png", "b.JPG"], ["the green van"]),
        (["the red car", "a.png", "van"], [], ["a.png"], ["the red car", "van"]),
        (["cup", "the cup"], [], ["cup"], ["the cup"]),
        (["scan", "the cup"], [], ["scan"], ["the cup"]),
        (["-", "./cup", "cup/", "x" * 5000], [], ["-", "./cup", "cup/"], ["x" * 5000]),
        (["a.png", "left/right shoe", "a\0b"], [], ["a.png"], ["left/right shoe", "a\0b"]),
        (["a.png", "cup"], ["cup", "foo.png"], ["a.png", "cup"], ["cup", "foo.png"]),
        (["missing.png"], ["cup"], ["missing.png"], ["cup"]),
        (["*.png", "?.JPG", "what is it?"], [], ["*.png", "?.JPG"], ["what is it?"]),
    ],
)
def test_images_and_expressions(
    place: Path, arguments: list[str], flags: list[str], images: list[str], expressions: list[str]
) -> None:
    assert sort_arguments(arguments, flags) == (images, [*flags, *expressions][-len(expressions) :])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "cup"], "'cup' may be an expression or the folder of that name: write "
         "--expression cup or ./cup"),
        (["a.png", "the van"], "write --expression 'the van' or './the van'"),
        (["a.png", "scan"], "may be an expression or the file of that name"),
        (["foo.png", "the van"], "'foo.png' does not exist and looks like an image: check the "
         "path, or, if it is an expression, write --expression foo.png"),
        (["a.png", "foo.HEIC"], "'foo.HEIC' does not exist and looks like an image"),
        (["*.tif", "the van"], "'*.tif' does not exist"),
        (["photos/*", "the van"], "'photos/*' does not exist"),
        (["photos/", "the car"], "'photos/' does not exist"),
        (["a.png", "b.JPG"], "there is no expression: 'a.png', 'b.JPG' exist, so they count"),
        (["cup", "a.png"], "there is no expression: 'cup', 'a.png' exist"),
        (["phots", "the car"], "there is no image among 'phots', 'the car': no file or folder"),
    ],
)  # fmt: skip
def test_what_may_be_either_is_refused_with_both_readings(
    place: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        sort_arguments(arguments)
    assert message in str(caught.value)


def test_one_list_of_formats_and_a_word_about_the_rest(tmp_path: Path) -> None:
    kept = ["a.jfif", "b.jpe", "c.MPO", "d.heic", "e.TIFF"]
    for name in [*kept, ".hidden.png", "x.mask.png", "notes.txt", "clip.mp4"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    found = find_inputs([str(tmp_path)], recursive=False)
    assert [source.path.name for source in found.images if source.path] == kept
    assert found.notes == (
        f"{tmp_path}: left out broken.png, clip.mp4, notes.txt (not images), "
        "1 earlier result, folder.png (--recursive reads folders, too)",
    )


def test_folders_in_folders(tmp_path: Path) -> None:
    files = ["a.png", "sub/a.png", "sub/deep/b.png", "Sub/a.png", ".git/c.png", "other/d.txt"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_inputs([str(tmp_path)], recursive=True)
    # On some file systems sub and Sub are one folder.
    stems = [source.stem for source in found.images]
    assert stems == ["a", "Sub/a.png", "sub/a.png-2", "sub/deep/b"]
    assert found.notes == (
        f"{tmp_path}: left out d.txt (not images), loop (links are not followed)",
    )
    with pytest.raises(InputError, match=r"other has no images, .*; .*left out d\.txt"):
        find_inputs([str(tmp_path / "other")])


def test_an_image_is_taken_once_and_earlier_results_are_not(tmp_path: Path) -> None:
    names = ["a.png", "a.jpg", "a.the-van.mask.png", "in/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    paths = [str(tmp_path / name) for name in names]
    found = find_inputs([*paths, f"{tmp_path}/in/../a.png", str(tmp_path / "in")])
    assert [source.label for source in found.images] == [paths[0], paths[1], paths[3]]
    assert [source.stem for source in found.images] == ["a.png", "a.jpg", "a.png-2"]
    assert "earlier results" in found.notes[0]
    (alone,) = find_inputs([paths[2]]).images
    assert alone.stem == "a.the-van.mask"


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "a.txt", "c.green.mask.png", "sub/a.png", "[x].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def found(pattern: str) -> list[str]:
        return [image.below.name for image in find_inputs([f"{tmp_path}/{pattern}"]).images]

    assert found("*") == ["[x].png", "a.png", "b.jpg"]
    assert found("[ab].*") == ["a.png", "b.jpg"]
    assert found("[x].png") == ["[x].png"]  # a file of that name
    assert found("**/a.png") == ["a.png", "a.png"]
    (note,) = find_inputs([f"{tmp_path}/*"]).notes
    assert note.endswith("left out a.txt, c.green.mask.png, sub (not images, or earlier results)")
    with pytest.raises(InputError, match="no image matches"):
        found("*.gif")
    with pytest.raises(InputError, match="no image matches"):
        found("*.txt")
