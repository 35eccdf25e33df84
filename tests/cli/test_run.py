import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from rism.cli.app import app
from rism.runtime import Segmenter
from rism.runtime.engines import onnxruntime

runner = CliRunner()


def invoke(*arguments: str | Path, code: int = 0, data: bytes | None = None) -> str:
    """Run in this process; return stdout, or stderr where the command is to fail."""
    result = runner.invoke(app, ["run", *map(str, arguments)], input=data)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def expected(tiny_bundle: Path, colours: np.ndarray) -> np.ndarray:
    found = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, "green")
    assert found.mask.any()
    return found.mask


def read_mask(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "L"
        return np.asarray(image) == 255


def test_without_flags_it_says_what_it_found_and_saves_beside_you(
    tiny_bundle: Path, picture: Path, workplace: Path, expected: np.ndarray
) -> None:
    line = invoke(picture, "green", "--bundle", tiny_bundle)
    assert line.count("\n") == 1
    assert '"green": box ' in line
    assert "separability" in line and ", confidence not fitted, " in line
    assert "ms on cpu in float32 -> colours.green.mask.png, colours.green.overlay.png" in line
    assert names(workplace) == ["colours.green.mask.png", "colours.green.overlay.png"]
    assert np.array_equal(read_mask(workplace / "colours.green.mask.png"), expected)


def test_several_expressions_get_names_of_their_own(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    lines = invoke(picture, "the green", "red", "--bundle", tiny_bundle, "--save", "mask")
    assert [line.split('"')[1] for line in lines.splitlines()] == ["the green", "red"]
    assert names(workplace) == ["colours.red.mask.png", "colours.the-green.mask.png"]


def test_an_overlay_is_one_for_all_expressions(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    arguments = [picture, "the green", "red", "--bundle", tiny_bundle]
    lines = invoke(*arguments, "-o", "all/").splitlines()
    assert all(line.endswith("all/colours.the-green+red.overlay.png") for line in lines)
    assert len(names(workplace / "all")) == 3
    invoke(*arguments, "-o", "all.png", "--save", "overlay")
    both = (workplace / "all.png").read_bytes()
    assert both == (workplace / "all/colours.the-green+red.overlay.png").read_bytes()
    assert "this run makes several" in invoke(*arguments, "-o", "all.png", code=2)
    many = [f"-e{str(number) * 20}" for number in range(9)]
    invoke(picture, *many, "--bundle", tiny_bundle, "--save", "overlay")
    (long,) = workplace.glob("*.overlay.png")
    assert len(long.name) < 90


def test_one_file(tiny_bundle: Path, picture: Path, workplace: Path, expected: np.ndarray) -> None:
    (workplace / "m.png").write_bytes(b"old")
    invoke(picture, "green", "--bundle", tiny_bundle, "-o", "m.png")
    assert np.array_equal(read_mask(workplace / "m.png"), expected)
    invoke(picture, "green", "--bundle", tiny_bundle, "-o", "c.png", "--save", "cutout")
    with Image.open(workplace / "c.png") as image:
        assert image.mode == "RGBA"
    assert names(workplace) == ["c.png", "m.png"]


def test_a_folder_for_the_results_is_made(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    invoke(picture, "green", "--bundle", tiny_bundle, "-o", "new/deep/", "--save", "all")
    assert names(workplace / "new/deep") == [
        f"colours.green.{kind}.png" for kind in ("cutout", "heatmap", "mask", "overlay")
    ]


def test_json_has_the_mask_as_coco_rle(
    tiny_bundle: Path, picture: Path, workplace: Path, expected: np.ndarray
) -> None:
    (record,) = json.loads(invoke(picture, "green", "--bundle", tiny_bundle, "--json"))
    assert record["image"] == str(picture)
    assert record["rle"]["size"] == [96, 160]
    assert np.array_equal(coco.decode(record["rle"]).astype(bool), expected)
    x, y, width, height = coco.toBbox(record["rle"])
    assert record["box_xyxy"] == [x, y, x + width, y + height]
    assert record["area_px"] == coco.area(record["rle"])
    assert record["expression"] == "green"
    assert record["instruction"] == "remove green"
    assert record["provider"] == "cpu"
    assert record["precision"] == "float32"
    assert record["reason"] is None
    assert {"image", "vae", "text", "transformer", "method", "mask"} <= set(record["timings_ms"])
    assert names(workplace) == []


def test_json_to_a_file_or_beside_pictures(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    line = invoke(picture, "green", "--bundle", tiny_bundle, "-o", "results.json")
    assert line.startswith(str(picture))
    assert json.loads((workplace / "results.json").read_text())[0]["expression"] == "green"
    out = invoke(picture, "green", "--bundle", tiny_bundle, "-o", "d/", "--json")
    assert json.loads(out)[0]["files"] == [
        "d/colours.green.mask.png",
        "d/colours.green.overlay.png",
    ]


def test_nothing_found_is_an_answer(tiny_bundle: Path, workplace: Path) -> None:
    Image.new("RGB", (64, 64), (9, 9, 9)).save(workplace / "plain.bmp")
    line = invoke("plain.bmp", "red", "--bundle", tiny_bundle)
    assert "nothing found (the attention map is constant)" in line
    assert not read_mask(workplace / "plain.red.mask.png").any()
    (record,) = json.loads(invoke("plain.bmp", "red", "--bundle", tiny_bundle, "--json"))
    assert record["box_xyxy"] is None
    assert record["reason"] == "the attention map is constant"


def test_what_a_demonstrator_does_not_know_is_said(workplace: Path) -> None:
    street = Path(__file__).parents[2] / "examples/street.png"
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(workplace / "noise.png")
    arguments = ["run", str(street), "noise.png", "the red car", "the zebra", "--save", "mask"]
    shown = runner.invoke(app, [*arguments, "--confidence", "0.01"])
    note, word, image = shown.stderr.splitlines()
    assert note.startswith("note: the bundle is a demonstrator")
    assert word.startswith("warning: the demonstrator knows nothing that 'the zebra' names, only ")
    assert image.startswith("warning: noise.png: the image is unlike the drawn scenes")
    doubtful, zebra, *_ = lines = shown.stdout.splitlines()
    assert "(doubtful)" in doubtful
    assert f"nothing found ({word.removeprefix('warning: ')}): --always" in zebra
    assert len(lines) == 4 and all("nothing found (the image is unlike" in x for x in lines[2:])
    kept = runner.invoke(app, [*arguments, "--always", "--json"])
    records = json.loads(kept.stdout)
    assert all(record["doubt"] and record["area_px"] for record in records)
    assert [record["confidence"] is None for record in records] == [False, True, True, True]
    strict = runner.invoke(app, ["run", str(street), "the red car", "--confidence", "0.5"])
    assert "expected at least 0.500): --always" in strict.stdout


def test_a_folder_of_pictures_goes_on_past_a_broken_one(
    tiny_bundle: Path, picture: Path, workplace: Path, colours: np.ndarray
) -> None:
    folder = workplace / "in"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "a.png", "A.txt", ".hidden.png", "x.mask.png"):
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "broken.png").write_bytes(picture.read_bytes()[:200])
    Image.new("RGB", (900, 10)).save(folder / "long.png")
    shown = runner.invoke(app, ["run", "in", "green", "--bundle", str(tiny_bundle), "-o", "out"])
    assert shown.exit_code == 1
    errors = shown.stderr.splitlines()
    assert len(errors) == 4
    assert errors[0] == "note: in: left out A.txt (not images), 1 earlier result"
    assert errors[1].startswith("error: in/broken.png: ")
    assert errors[2].startswith("error: in/long.png: the image is 900 x 10 pixels")
    assert errors[3] == "error: 2 of 5 images failed, the others are written"
    assert [line.split(" ")[0] for line in shown.stdout.splitlines()] == [
        "in/a.jpg", "in/a.png", "in/b.png",
    ]  # fmt: skip
    assert names(workplace / "out") == [
        f"{stem}.green.{kind}.png"
        for stem in ("a.jpg", "a.png", "b")
        for kind in ("mask", "overlay")
    ]


def test_a_folder_as_json_names_the_failures(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    (workplace / "in").mkdir()
    (workplace / "in/a.png").write_bytes(picture.read_bytes())
    (workplace / "in/b.png").write_bytes(b"no picture")
    shown = runner.invoke(app, ["run", "in", "red", "--bundle", str(tiny_bundle), "--json"])
    assert shown.exit_code == 1
    good, bad = json.loads(shown.stdout)
    assert good["image"] == "in/a.png"
    assert bad["image"] == "in/b.png"
    assert "not an image" in bad["error"]
    assert names(workplace) == ["in"]


def test_an_expression_that_no_picture_can_answer_ends_the_run_at_once(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    (workplace / "in").mkdir()
    for name in ("a.png", "b.png"):
        (workplace / "in" / name).write_bytes(picture.read_bytes())
    message = invoke("in", "  ", "--bundle", tiny_bundle, "-o", "out/", code=1)
    assert message.count("error:") == 1
    assert "expression" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a"], "-o a: end it in .png for an image, .json for results, / for a folder"),
        (["-o", "a.jpg"], "end it in .png"),
        (["-o", "-", "--json"], "both want stdout"),
        (["-o", "a.png", "--save", "mask,overlay"], "takes one image, this run makes several"),
        (["blue", "-o", "-"], "takes one image, this run makes several"),
        (["-o", "a.json", "--save", "mask"], "for images too, -o DIR/ --json"),
        (["--save", "mask,video"], "--save has 'video', expected some of mask,overlay,cutout"),
        (["--save", ""], "--save has ''"),
    ],
)
def test_flags_that_do_not_go_together(
    picture: Path, workplace: Path, arguments: list[str], message: str
) -> None:
    shown = invoke(picture, "green", *arguments, code=2)
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert message in shown
    assert names(workplace) == []


def test_a_folder_needs_a_folder(picture: Path, workplace: Path) -> None:
    assert "add -o DIR/" in invoke(picture.parent, "green", code=2)
    assert "use -o DIR/" in invoke(picture.parent, "green", "-o", "-", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "folder empty has no images, expected names in .apng"),
        (["x.txt"], "not an image rism can read"),
        (["PICTURE", "--bundle", "missing"], "no bundle 'missing'"),
        (["PICTURE", "-o", "no/where/a.png"], "folder no/where does not exist: make it first"),
        (["PICTURE", "-o", "x.txt/"], "cannot make folder x.txt: File exists"),
        (["PICTURE", "-o", "n" * 300 + ".png"], "File name too long"),
    ],
)
def test_failures_are_one_line_and_code_1(
    tiny_bundle: Path, picture: Path, workplace: Path, arguments: list[str], message: str
) -> None:
    (workplace / "empty").mkdir()
    (workplace / "x.txt").write_bytes(b"hello")
    first, *rest = [str(picture) if part == "PICTURE" else part for part in arguments]
    bundle = [] if "--bundle" in rest else ["--bundle", tiny_bundle]
    shown = invoke(
        first, "green", *rest, *bundle, *([] if first != "empty" else ["--json"]), code=1
    )
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert message in shown


def test_verbose_shows_where_an_error_came_from(workplace: Path, tiny_bundle: Path) -> None:
    shown = invoke("missing.png", "-e", "green", "--bundle", tiny_bundle, "-v", code=1)
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: ")


def test_quiet_says_nothing(tiny_bundle: Path, picture: Path, workplace: Path) -> None:
    shown = runner.invoke(app, ["run", str(picture), "red", "--bundle", str(tiny_bundle), "-q"])
    assert shown.output == ""
    assert len(names(workplace)) == 2


def test_a_picture_on_stdin(
    tiny_bundle: Path, picture: Path, workplace: Path, expected: np.ndarray
) -> None:
    invoke("-", "green", "--bundle", tiny_bundle, data=picture.read_bytes())
    assert np.array_equal(read_mask(workplace / "stdin.green.mask.png"), expected)
    assert "is empty (0 bytes)" in invoke("-", "green", "--bundle", tiny_bundle, data=b"", code=1)


@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
def test_every_capture_mode(
    tiny_bundle: Path, picture: Path, workplace: Path, capture: str, expected: np.ndarray
) -> None:
    invoke(picture, "green", "--bundle", tiny_bundle, "-o", "m.png", "--capture", capture)
    assert np.array_equal(read_mask(workplace / "m.png"), expected)


REFINER = """
def shout(instruction, image):
    assert image.shape == (96, 160, 3)
    return instruction.replace("thing", "green")

def wide_only(instruction, image):
    assert image.shape[1] > 100, "too narrow"
    return instruction

number = 3
"""


def test_a_template_and_a_refiner(
    tiny_bundle: Path, picture: Path, workplace: Path, expected: np.ndarray
) -> None:
    (workplace / "my_words.py").write_text(REFINER)
    words = ["--template", "the {expression}", "--refiner", "my_words:shout"]
    (record,) = json.loads(invoke(picture, "thing", "--bundle", tiny_bundle, "--json", *words))
    assert (record["expression"], record["instruction"]) == ("thing", "the green")
    assert record["area_px"] == pytest.approx(expected.sum(), rel=0.2)


def test_a_refiner_may_fail_on_one_picture_of_a_folder(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    (workplace / "some_words.py").write_text(REFINER)
    (workplace / "in").mkdir()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(workplace / "in/a.png")
    (workplace / "in/b.png").write_bytes(picture.read_bytes())
    options = ["--bundle", str(tiny_bundle), "--refiner", "some_words:wide_only", "--json"]
    shown = runner.invoke(app, ["run", "in", "green", *options])
    assert shown.exit_code == 1
    assert shown.stderr.splitlines() == [
        "error: in/a.png: refiner 'wide_only' failed (AssertionError: too narrow), expected an "
        "instruction: correct it, or run without",
        "error: 1 of 2 images failed, the others are written",
    ]
    bad, good = json.loads(shown.stdout)
    assert "too narrow" in bad["error"] and good["area_px"] > 0


@pytest.mark.parametrize("tokens", ["all", "valid", "instruction", "expression", "content", "head"])
def test_sets_of_tokens(tiny_bundle: Path, picture: Path, workplace: Path, tokens: str) -> None:
    invoke(picture, "the green", "--bundle", tiny_bundle, "-o", "m.png", "--tokens", tokens)
    found = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(
        picture, "the green", prompt_weights=tokens
    )
    assert np.array_equal(read_mask(workplace / "m.png"), found.mask)


def test_magnets_and_sinks(tiny_bundle: Path, picture: Path, workplace: Path) -> None:
    options = ("--bundle", tiny_bundle, "--magnets", "the blue", "--sinks")
    invoke(picture, "green", *options, "-o", "m.png")
    found = Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(
        picture, "green", magnets="the blue", sinks=True
    )
    assert np.array_equal(read_mask(workplace / "m.png"), found.mask)
    (told,) = json.loads(invoke(picture, "green", *options, "--json"))
    assert told["instruction"] == "remove green the blue"
    assert told["sinks"] == list(found.sinks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--refiner", "words"], "--refiner is 'words', expected MODULE:FUNCTION, such as"),
        (["--refiner", "a b:c"], "--refiner is 'a b:c', expected MODULE:FUNCTION"),
        (["--refiner", "no_such_module:f"], "cannot be imported (ModuleNotFoundError: No module"),
        (["--refiner", "broken_words:f"], "broken_words cannot be imported (ZeroDivisionError:"),
        (["--refiner", "good_words:none"], "good_words has no such function, expected one that"),
        (["--refiner", "good_words:number"], "good_words has no such function, expected one that"),
    ],
)
def test_a_refiner_that_is_not_there(
    tiny_bundle: Path, picture: Path, workplace: Path, arguments: list[str], message: str
) -> None:
    (workplace / "good_words.py").write_text(REFINER)
    (workplace / "broken_words.py").write_text("1 / 0\n")
    shown = invoke(picture, "green", "--bundle", tiny_bundle, *arguments, code=2)
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert message in shown


def test_a_template_without_a_place_for_the_expression(
    tiny_bundle: Path, picture: Path, workplace: Path
) -> None:
    shown = invoke(picture, "green", "--bundle", tiny_bundle, "--template", "remove it", code=1)
    assert "template is 'remove it', expected text with {expression} in it once" in shown


def test_embeddings_are_kept_on_request(
    tiny_bundle: Path, picture: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [picture, "green", "--bundle", tiny_bundle, "--cache", "kept", "--json"]

    def result() -> dict[str, object]:
        (record,) = json.loads(invoke(*arguments))
        del record["timings_ms"]
        return dict(record)

    first = result()
    (entry,) = (workplace / "kept").iterdir()
    loaded: list[str] = []
    real = onnxruntime.open_session

    def session(file: Path, *rest: object, **options: object) -> object:
        loaded.append(file.name)
        return real(file, *rest, **options)

    monkeypatch.setattr(onnxruntime, "open_session", session)
    assert result() == first
    assert sorted(loaded) == ["transformer.vectors.onnx", "vae_encoder.onnx"]
    entry.write_bytes(entry.read_bytes()[:50])
    shown = runner.invoke(app, ["run", *map(str, arguments), "-v"])
    assert shown.exit_code == 0
    assert f"cached embedding kept/{entry.name} is not sound (50 bytes): made again" in shown.stderr
    assert "not sound" not in runner.invoke(app, ["run", *map(str, arguments), "-v"]).stderr


def test_a_cache_that_cannot_be(tiny_bundle: Path, picture: Path, workplace: Path) -> None:
    (workplace / "f").write_text("")
    shown = invoke(picture, "green", "--bundle", tiny_bundle, "--cache", "f", code=1)
    assert shown == "error: cannot make folder f for embeddings: File exists\n"
