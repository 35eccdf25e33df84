"""`rism calibrate`: what it writes, and what bad input gets."""

import json
import re
import shutil
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from rism.calibration import load_scales
from rism.calibration.activation_moments import load_moments
from rism.calibration.samples import read_expressions
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.bundle.update import update_bundle
from rism.runtime.distribution import install_hint
from rism.runtime.errors import InputError
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES

KNOWN = ("pictures", "earlier.json")


def run(*arguments: str | Path | int, code: int = 0) -> str:
    return invoke("calibrate", *arguments, code=code).output


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("street.png", "kind-1.png"):
        shutil.copy(EXAMPLES / name, folder)
    return folder


def test_scales_are_stored_in_the_bundle(own_mini: Path, pictures: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    entries = [{"image": "street.png", "expression": "the green van", "truth": "ignored"}]
    asked.write_text(json.dumps(entries))
    report, plot = tmp_path / "report.json", tmp_path / "report.svg"
    power = tmp_path / "activations.npz"
    written = ("--report", report, "--plot", plot, "--activations", power)
    output = run(own_mini, "--images", pictures, "--expressions", asked, *written)
    assert "34 layers in FP8, 4 kept, rule max (percentile 100), 1 samples" in output
    opened = Bundle.open(own_mini)
    assert opened.manifest.calibration == "scales.json"
    assert load_scales(own_mini / "scales.json", opened).samples == 1
    data = json.loads(report.read_text())
    assert len(data["layers"]) == 38
    keys = {"name", "shape", "amax", "scale", "activation_error", "saturated", "weight_error"}
    assert keys <= set(data["layers"][5])
    found = load_moments(power)
    assert len(found) == 34
    assert all(
        found[each["name"]][..., 0].size in each["shape"]
        for each in data["layers"]
        if "amax" in each
    )
    assert plot.read_text().lstrip().startswith("<?xml")
    # Again, with other scales in the place of these.
    assert run(own_mini, "--images", pictures, "-q", "--keep", "transformer_blocks.0.*") == ""
    again = load_scales(own_mini / "scales.json", Bundle.open(own_mini))
    assert again.samples == 2
    assert again.kept["transformer_blocks.0.attn.to_q"] == "asked for"
    assert not list(own_mini.glob(".*"))


def test_scales_in_a_file_leave_the_bundle_alone(
    own_mini: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without matplotlib, which only a plot needs."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = (own_mini / "manifest.json").read_bytes()
    lines, report = tmp_path / "lines.txt", tmp_path / "report.json"
    lines.write_text("the green van\n\nthe dog\nthe fish\n")
    asked = ("--images", pictures, "--expressions", lines, "-o", tmp_path / "s.json")
    output = run(own_mini, *asked, "--plot", tmp_path / "plot.png", code=1)
    assert output.count("\n") == 1
    assert "--plot needs matplotlib" in output and install_hint("calibrate") in output
    assert not (tmp_path / "s.json").exists()
    run(own_mini, *asked, "--report", report)
    assert load_scales(tmp_path / "s.json", Bundle.open(own_mini)).samples == 3
    assert (own_mini / "manifest.json").read_bytes() == before and report.exists()


def test_what_is_refused_before_the_calibration(
    own_mini: Path, pictures: Path, tmp_path: Path
) -> None:
    image, empty, one, no = pictures / "street.png", tmp_path / "empty", tmp_path / "r", "no"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    before = image.read_bytes()
    missing = f"folder {tmp_path / no} does not exist: make it first (mkdir -p"
    own = ("--images", pictures)
    for code, arguments, message in (
        (2, (*own, "--plot", image), "is an input"),
        (2, (*own, "-o", one, "--report", one), "are one file"),
        (2, (*own, "--percentile", "99"), "goes with --rule percentile, not with max"),
        (2, (*own, "--plot", "x.bmp"), "expected a name in .png, .svg, .pdf"),
        (1, (*own, "-o", tmp_path / no / "s.json"), missing),
        (1, (*own, "--report", tmp_path / no / "r.json"), missing),
        (1, (*own, "--plot", tmp_path / no / "p.png"), missing),
        (1, ("--images", empty), f"error: folder {empty} has no images, expected names in .apng"),
        (1, ("--images", empty / "notes.txt"), "is a file, expected a folder of images"),
        (1, ("--images", tmp_path / no), "does not exist, expected a folder of images"),
    ):
        assert message in run(own_mini, *arguments, code=code)
    assert image.read_bytes() == before and not one.exists()
    assert not (own_mini / "scales.json").exists()


def test_what_is_no_image_stops_it(own_mini: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    before = (own_mini / "manifest.json").read_bytes()
    earlier = pictures.parent / "earlier.json"
    earlier.write_text("what was there")
    for where in ([], ["-o", earlier]):
        output = run(own_mini, "--images", pictures, *where, code=1)
        assert output.count("\n") == 1 and "broken.png" in output
    assert earlier.read_text() == "what was there"
    assert {file.name for file in pictures.parent.iterdir()} <= {*KNOWN, own_mini.name}
    assert (own_mini / "manifest.json").read_bytes() == before
    assert not (own_mini / "scales.json").exists()


def test_expressions_that_cannot_be_used(tmp_path: Path) -> None:
    images = [Path("street.png")]
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        read_expressions(tmp_path / "none.txt", images)
    for name, text, message in (
        ("a.txt", "\n \n", "a.txt has 0 expressions, expected 1 to"),
        ("a.json", "{", "a.json is not readable JSON"),
        ("a.json", "[" * 100_000, "a.json is not readable JSON"),
        ("a.json", "[]", "is not a list of 1 to"),
        ("a.json", '[{"image": "street.png"}]', "entry 1 is not an object with text"),
        ("a.json", '[{"image": "../x.png", "expression": "a"}]', "names '../x.png', expected one"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=re.escape(message)):
            read_expressions(tmp_path / name, images)


def test_bundles_of_an_older_exporter_are_refused(pictures: Path, tmp_path: Path) -> None:
    """Their weights had no names of their own."""
    older = tmp_path / "older"
    shutil.copytree(resolve_bundle(), older)
    renamed = {}
    for file in sorted(older.glob("transformer.*.onnx")):
        model = ir.load(file)
        for number, weight in enumerate([*model.graph.initializers.values()]):
            weight.name = f"weight_{number}"
        renamed[file.name] = tmp_path / file.name
        ir.save(model, renamed[file.name])
    update_bundle(older, lambda _: None, files=renamed)
    output = run(older, "--images", pictures, "-o", pictures / "scales.json", code=1)
    assert "no layer of a numbered block: rism export --model MODEL -o DIR" in output
    assert not (pictures / "scales.json").exists()
