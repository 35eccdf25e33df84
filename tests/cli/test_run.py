"""`rism run` on one image and on a folder, with every flag, in this process."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from rism.runtime import Segmenter
from rism.runtime.names import CAPTURES, TOKEN_SETS
from tests.cli.conftest import Run, invoke
from tests.paths import STREET


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def segment(tiny_bundle: Path, colours: np.ndarray) -> Callable[..., np.ndarray]:
    """The mask that the library finds."""
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    return lambda *arguments, **options: segmenter.segment(colours, *arguments, **options).mask


def read_mask(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "L"
        return np.asarray(image) == 255


def test_without_flags_it_says_what_it_found_and_saves_beside_you(
    run: Run, picture: Path, workplace: Path, segment: Callable[..., np.ndarray]
) -> None:
    line = run(picture, "green").stdout
    assert line.count("\n") == 1
    assert '"green": box ' in line
    assert "separability" in line and ", confidence not fitted, " in line
    assert "ms on cpu in float32 -> colours.green.mask.png, colours.green.overlay.png" in line
    assert names(workplace) == ["colours.green.mask.png", "colours.green.overlay.png"]
    expected = segment("green")
    assert expected.any()
    assert np.array_equal(read_mask(workplace / "colours.green.mask.png"), expected)
    assert run(picture, "red", "-q").output == ""
    assert len(names(workplace)) == 4


def test_an_overlay_is_one_for_all_expressions(run: Run, picture: Path, workplace: Path) -> None:
    arguments = [picture, "the green", "red"]
    lines = run(*arguments, "-o", "all/").stdout.splitlines()
    assert [line.split('"')[1] for line in lines] == ["the green", "red"]
    assert all(line.endswith("all/colours.the-green+red.overlay.png") for line in lines)
    assert names(workplace / "all") == [
        "colours.red.mask.png", "colours.the-green+red.overlay.png", "colours.the-green.mask.png",
    ]  # fmt: skip
    run(*arguments, "-o", "all.png", "--save", "overlay")
    both = (workplace / "all.png").read_bytes()
    assert both == (workplace / "all/colours.the-green+red.overlay.png").read_bytes()
    assert "this run makes several" in run(*arguments, "-o", "all.png", code=2).stderr
    many = [f"-e{str(number) * 20}" for number in range(9)]
    run(picture, *many, "--save", "overlay")
    (long,) = workplace.glob("*.overlay.png")
    assert len(long.name) < 90


def test_one_file_or_a_folder_that_is_made(run: Run, picture: Path, workplace: Path) -> None:
    run(picture, "green", "-o", "c.png", "--save", "cutout")
    with Image.open(workplace / "c.png") as image:
        assert image.mode == "RGBA"
    assert names(workplace) == ["c.png"]
    run(picture, "green", "-o", "new/deep/", "--save", "all")
    assert names(workplace / "new/deep") == [
        f"colours.green.{kind}.png" for kind in ("cutout", "heatmap", "mask", "overlay")
    ]


def test_json_has_the_mask_as_coco_rle(
    run: Run, picture: Path, workplace: Path, segment: Callable[..., np.ndarray]
) -> None:
    (record,) = json.loads(run(picture, "green", "--json").stdout)
    assert record["rle"]["size"] == [96, 160]
    assert np.array_equal(coco.decode(record["rle"]).astype(bool), segment("green"))
    x, y, width, height = coco.toBbox(record["rle"])
    expected = {
        "image": str(picture), "box_xyxy": [x, y, x + width, y + height],
        "area_px": coco.area(record["rle"]), "expression": "green",
        "instruction": "remove green", "provider": "cpu", "precision": "float32", "reason": None,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert {"image", "vae", "text", "transformer", "method", "mask"} <= set(record["timings_ms"])
    assert names(workplace) == []
    line = run(picture, "green", "-o", "results.json").stdout
    assert line.startswith(str(picture))
    assert json.loads((workplace / "results.json").read_text())[0]["expression"] == "green"
    (record,) = json.loads(run(picture, "green", "-o", "d/", "--json").stdout)
    assert record["files"] == ["d/colours.green.mask.png", "d/colours.green.overlay.png"]


def test_nothing_found_is_an_answer(run: Run, workplace: Path) -> None:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(workplace / "plain.bmp")
    line = run("plain.bmp", "red").stdout
    assert "nothing found (the attention map is constant)" in line
    assert not read_mask(workplace / "plain.red.mask.png").any()
    (record,) = json.loads(run("plain.bmp", "red", "--json").stdout)
    assert record["box_xyxy"] is None
    assert record["reason"] == "the attention map is constant"


def test_what_a_demonstrator_does_not_know_is_said(workplace: Path) -> None:
    arguments = ["run", STREET, "the red car", "the walrus", "--save", "mask"]
    shown = invoke(*arguments, "--confidence", "0.01")
    note, word = shown.stderr.splitlines()
    assert note.startswith("note: the bundle is a demonstrator")
    assert "add --model flux2-klein-4b (or step1x)" in note
    assert word.startswith("warning: the demonstrator knows nothing that 'the walrus' names, only ")
    doubtful, walrus = shown.stdout.splitlines()
    assert "(doubtful)" in doubtful
    assert f"nothing found ({word.removeprefix('warning: ')}): --always" in walrus
    kept = invoke(*arguments, "--always", "--json", "--bundle", "mini", "-q")
    assert kept.stderr == ""
    records = json.loads(kept.stdout)
    assert all(record["doubt"] and record["area_px"] for record in records)
    assert all(record["model"] == "mini" and record["demonstrator"] for record in records)
    assert [record["confidence"] is None for record in records] == [False, True]
    strict = invoke("run", STREET, "the red car", "--confidence", "0.5")
    assert "expected at least 0.500): --always" in strict.stdout


def test_a_folder_of_pictures_goes_on_past_a_broken_one(
    run: Run, picture: Path, workplace: Path
) -> None:
    folder = workplace / "in"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "a.png", "A.txt", ".hidden.png", "x.mask.png"):
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "broken.png").write_bytes(picture.read_bytes()[:200])
    Image.new("RGB", (900, 10)).save(folder / "long.png")
    shown = run("in", "green", "-o", "out", code=1)
    errors = shown.stderr.splitlines()
    assert len(errors) == 5
    assert errors[0] == "note: in: left out A.txt (not images), 1 earlier result"
    assert errors[1].startswith("error: in/broken.png: ")
    assert errors[2].startswith("error: in/long.png: the image is 900 x 10 pixels")
    assert errors[3] == "5 images: 3 done, 2 failed; 3 masks, 0 expressions not found"
    assert errors[4] == "error: 2 of 5 images failed, the others are written"
    assert [line.split(" ")[0] for line in shown.stdout.splitlines()] == [
        "in/a.jpg", "in/a.png", "in/b.png",
    ]  # fmt: skip
    assert names(workplace / "out") == [
        f"{stem}.green.{kind}.png"
        for stem in ("a.jpg", "a.png", "b")
        for kind in ("mask", "overlay")
    ]
    records = json.loads(run("in", "red", "--json", code=1).stdout)
    assert [record["image"] for record in records if "error" in record] == [
        "in/broken.png", "in/long.png",
    ]  # fmt: skip
    # An expression that fits no image ends the run at once.
    message = run("in", "  ", "-o", "out/", code=1).stderr
    assert message.count("error:") == 1 and "expression" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a"], "-o a: end it in .png for an image, .json for results, / for a folder"),
        (["-o", "a.jpg"], "end it in .png"),
        (["-o", "-", "--json"], "both want stdout"),
        (["--json", "--jsonl"], "both want stdout"),
        (["-o", "a.png", "--save", "mask,overlay"], "takes one image, this run makes several"),
        (["red", "-o", "x.png"], "-o x.png takes one image"),
        ([STREET, "-o", "x.JPG"], "-o x.JPG takes one image"),
        ([STREET, "-o", "-"], "-o - takes one image"),
        (["..", "-e", "red", "-o", "x.png"], "-o x.png takes one image"),
        (["--resume"], "--resume needs --format or -o FILE.jsonl"),
        (["--json", "--skip-existing"], "--skip-existing needs files"),
        (["--rle"], "--rle says how a dataset is written: add --format"),
        (["--format", "yolo", "--rle"], "--rle has no meaning for --format yolo"),
        (["--format", "coco", "--rle", "--epsilon", "1"], "--epsilon has no meaning with --rle"),
        (["--format", "coco", "-o", "a.json"], "--format coco writes a folder, expected -o DIR/"),
        (["--format", "coco", "--save", "mask"], "--save and --format both say"),
        (["--format", "coco", "--skip-existing"], "one for all: use --resume"),
        (["green"], "'green' is given twice"),
        (["-o", "a.json", "--save", "mask"], "for images too, -o DIR/ --json"),
        (["--save", "mask,video"], "--save has 'video', expected some of mask,overlay,cutout"),
        (["--save", ""], "--save has ''"),
        (["..", "-e", "green"], "add -o DIR/"),
        (["..", "-e", "green", "-o", "-"], "use -o DIR/"),
        (["--refiner", "words"], "--refiner is 'words', expected MODULE:FUNCTION, such as"),
        (["--refiner", "a b:c"], "--refiner is 'a b:c', expected MODULE:FUNCTION"),
        (["--refiner", "no_such_module:f"], "cannot be imported (ModuleNotFoundError: No module"),
        (["--refiner", "broken_words:f"], "broken_words cannot be imported (ZeroDivisionError:"),
        (["--refiner", "good_words:none"], "good_words has no such function, expected one that"),
        (["--refiner", "good_words:number"], "good_words has no such function, expected one that"),
    ],
)
def test_wrong_usage_is_one_line_and_makes_nothing(
    run: Run, picture: Path, workplace: Path, arguments: list[str | Path], message: str
) -> None:
    (workplace / "good_words.py").write_text(REFINER)
    (workplace / "broken_words.py").write_text("1 / 0\n")
    first = [picture] if ".." in arguments else [picture, "green"]
    shown = run(*first, *arguments, code=2).stderr
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert message in shown
    assert {file.suffix for file in workplace.iterdir()} <= {".py", ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty", "green", "--json"], "folder empty has no images, expected names in .apng"),
        (["x.txt", "green"], "not an image rism can read"),
        (["PICTURE", "-o", "no/where/a.png"], "folder no/where does not exist: make it first"),
        (["PICTURE", "-o", "x.txt/"], "cannot make folder x.txt: File exists"),
        (["PICTURE", "-o", "x.txt/mask.png"], "x.txt"),
        (["PICTURE", "-o", "n" * 300 + ".png"], "File name too long"),
        (["PICTURE", "-o", "/dev/full"], "cannot write /dev/full: No space left on device"),
        (["PICTURE", "-o", "/proc/nothing.png"], "cannot write /proc/nothing.png"),
        (["PICTURE", "-o", "/proc/rism/"], "cannot make folder /proc/rism"),
        (["PICTURE", "--cache", "x.txt"], "cannot make folder x.txt for embeddings: File exists"),
        (["PICTURE", "--template", "remove it"], "expected text with {expression} in it once"),
    ],
)
def test_failures_are_one_line_and_code_1(
    run: Run, picture: Path, workplace: Path, arguments: list[str], message: str
) -> None:
    (workplace / "empty").mkdir()
    (workplace / "x.txt").write_bytes(b"hello")
    if arguments[0] == "PICTURE":
        arguments = [str(picture), "green", *arguments[1:]]
    shown = run(*arguments, code=1).stderr
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert message in shown
    assert not Path("/dev/full").is_file()


def test_verbose_shows_where_an_error_came_from(run: Run, picture: Path) -> None:
    shown = run("missing.png", "-e", "green", "-v", code=1).stderr
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: ")
    missing = invoke("run", picture, "green", "--bundle", "missing", code=1).stderr
    assert missing.startswith("error: no bundle 'missing'") and missing.count("\n") == 1


def test_a_picture_on_stdin(
    run: Run, picture: Path, workplace: Path, segment: Callable[..., np.ndarray]
) -> None:
    run("-", "green", data=picture.read_bytes())
    assert np.array_equal(read_mask(workplace / "stdin.green.mask.png"), segment("green"))
    assert "is empty (0 bytes)" in run("-", "green", data=b"", code=1).stderr


def test_flags_choose_the_capture_and_the_tokens(
    run: Run, picture: Path, workplace: Path, segment: Callable[..., np.ndarray]
) -> None:
    (workplace / "m.png").write_bytes(b"old")
    captures = [(["--capture", each], {}) for each in CAPTURES]
    token_sets = [(["--tokens", each], {"prompt_weights": each}) for each in TOKEN_SETS]
    for flags, options in (*captures, *token_sets):
        run(picture, "the green", "-o", "m.png", *flags)
        expected = segment("the green", **options)
        assert np.array_equal(read_mask(workplace / "m.png"), expected), flags


def test_magnets_and_sinks(run: Run, picture: Path, tiny_bundle: Path, colours: np.ndarray) -> None:
    (told,) = json.loads(run(picture, "green", "--magnets", "the blue", "--sinks", "--json").stdout)
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    found = segmenter.segment(colours, "green", magnets="the blue", sinks=True)
    assert np.array_equal(coco.decode(told["rle"]).astype(bool), found.mask)
    assert told["instruction"] == "remove green the blue"
    assert told["sinks"] == list(found.sinks)


REFINER = """
def shout(instruction, image):
    assert image.shape == (96, 160, 3)
    return instruction.replace("thing", "green")

number = 3
"""


def test_a_template_and_a_refiner(
    run: Run, picture: Path, workplace: Path, segment: Callable[..., np.ndarray]
) -> None:
    (workplace / "my_words.py").write_text(REFINER)
    words = ["--template", "the {expression}", "--refiner", "my_words:shout"]
    (record,) = json.loads(run(picture, "thing", "--json", *words).stdout)
    assert (record["expression"], record["instruction"]) == ("thing", "the green")
    assert record["area_px"] == pytest.approx(segment("green").sum(), rel=0.2)


def test_embeddings_are_kept_on_request(
    run: Run, picture: Path, workplace: Path, opened: list[str]
) -> None:
    arguments = [picture, "green", "--cache", "kept", "--json"]

    def result() -> dict[str, object]:
        (record,) = json.loads(run(*arguments).stdout)
        del record["timings_ms"]
        return dict(record)

    first = result()
    (entry,) = (workplace / "kept").iterdir()
    opened.clear()
    assert result() == first
    assert sorted(opened) == ["transformer.vectors.onnx", "vae_encoder.onnx"]
    entry.write_bytes(entry.read_bytes()[:50])
    said = f"cached embedding kept/{entry.name} is not sound (50 bytes): made again"
    assert said in run(*arguments, "-v").stderr
    assert "not sound" not in run(*arguments, "-v").stderr


def test_within_a_budget(run: Run, picture: Path, segment: Callable[..., np.ndarray]) -> None:
    found = run(picture, "green", "--memory", "4 GB", "-v", "-o", "mask.png")
    assert "memory 3.73 GiB: all graphs stay loaded" in found.stderr
    assert np.array_equal(read_mask(Path("mask.png")), segment("green"))
    for size, code, says in (
        ("0", 2, "memory is '0', expected a size such as 8GiB"),
        ("0GB", 2, "memory is 0GB, expected more than 0"),
        ("9000TiB", 1, "memory is 9000TiB, this process can have"),
        ("1MiB", 1, "is too little: "),
    ):
        error = run(picture, "green", "--memory", size, code=code).stderr
        assert says in error.splitlines()[-1], error
