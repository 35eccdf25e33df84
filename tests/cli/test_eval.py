"""`rism eval` with the built-in model, on scenes and on a file of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.evaluation.datasets.scenes import SceneSet
from rism.evaluation.metrics.iou import overlap, summarise
from rism.runtime import Segmenter
from rism.runtime.prompt.instruction_file import (
    InstructionFile,
    Origin,
    RefinedInstruction,
    image_digest,
)
from rism.runtime.result.rle import encode_rle
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES


def evaluate(*arguments: str | Path, code: int = 0) -> str:
    """Run `rism eval` in this process; return stdout, or stderr where it fails."""
    result = invoke("eval", *arguments, "--provider", "cpu", code=code)
    return result.stderr if code else result.stdout


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_a_dataset_in_the_folder_of_its_results_is_kept(tmp_path: Path) -> None:
    source = write_lines(tmp_path).rename(tmp_path / "records.jsonl")
    before = source.read_bytes()
    assert "is an input" in evaluate(source, "-o", tmp_path, "--restart", code=2)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def write_lines(folder: Path, *, broken: bool = False) -> Path:
    """Two of the examples as a FILE.jsonl, and a picture that is not there."""
    entries = json.loads((EXAMPLES / "examples.json").read_text())[:2]
    lines = [
        {
            "image": str(EXAMPLES / entry["image"]),
            "expression": entry["expression"],
            "mask": str(EXAMPLES / entry["truth"]),
        }
        for entry in entries
    ]
    if broken:
        lines.insert(1, {**lines[0], "image": "nowhere.png"})
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_scenes_are_scored_as_one_by_one(workplace: Path) -> None:
    shown = evaluate("scenes", "--count", "3", "--split", "tuning", "--tau", "0.7", "--maps")
    [folder] = workplace.iterdir()
    assert folder.name == "eval-scenes-plain-tuning-mini"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["records.jsonl", "report.html", "result.json"]
    scenes, segmenter = SceneSet("plain", "tuning", 3), Segmenter.from_bundle(provider="cpu")
    expected = summarise(
        overlap(
            segmenter.segment(scenes.image(sample), sample.expression, tau=0.7).mask,
            scenes.mask(sample),
        )
        for sample in scenes.samples
    )
    result = result_of(folder)
    assert result["metrics"]["full"] == expected
    assert {*result["metrics"]} == {"full", "CAM > 0.5", "RAM > 0.5"}
    assert result["run"]["options"] == {"tau": 0.7}
    assert result["run"]["bundle_digest"] == segmenter.bundle.digest
    row = next(line for line in shown.splitlines() if line.startswith("full "))
    assert row.split()[1:4] == ["3", *(f"{100 * expected[m]:.2f}" for m in ("mIoU", "oIoU"))]


def test_scenes_of_another_beginning_and_seed(workplace: Path) -> None:
    asked = ("scenes", "--count", "1", "--offset", "2", "--seed", "7")
    evaluate(*asked)
    assert "--restart" not in evaluate(*asked, "-q")  # the same run, gone on with
    folder = workplace / "eval-scenes-plain-test-seed-7-from-2-mini"
    line = json.loads((folder / "records.jsonl").read_text().splitlines()[1])
    [sample] = SceneSet("plain", "test", 1, offset=2, seed=7).samples
    assert (line["key"], line["expression"]) == ("2", sample.expression)
    said = {k: v for k, v in result_of(folder)["dataset"].items() if k in ("offset", "seed")}
    assert said == {"offset": 2, "seed": 7}


def test_another_bundle_is_scored_beside_it(workplace: Path) -> None:
    asked = ("scenes", "--count", "3", "-o", "run", "--against", "mini", "--upsample", "bilinear")
    shown = evaluate(*asked)
    found = result_of(workplace / "run")["against"]
    assert (found["bundle"], found["n"]) == ("mini", 3)
    assert (found["mIoU difference"], found["margin"]) == (0, 0)
    assert 0.01 < found["time ratio"] < 100
    assert result_of(workplace / "run/against")["run"]["options"] == {"upsample": "bilinear"}
    assert "against mini (against): mIoU +0.00 ± 0.00 points on 3 samples" in shown


def test_shards_are_merged_into_the_whole(workplace: Path) -> None:
    asked = ("scenes", "--kind", "absent", "--count", "3")
    evaluate(*asked, "-o", "whole")
    for shard in ("1/2", "2/2"):
        evaluate(*asked, "--shard", shard)
    folders = [f"eval-scenes-absent-test-mini-{number}-of-2" for number in (1, 2)]
    evaluate(*asked, "-o", "merged", "--merge", *folders)
    whole, merged = result_of(workplace / "whole"), result_of(workplace / "merged")
    for key in ("metrics", "groups", "absent", "counts", "histogram"):
        assert whole[key] == merged[key]
    assert whole["absent"]["n"] == 3
    said = evaluate(*asked, "-o", "other", "--merge", folders[0], code=1)
    assert said == "note: drawn scenes: they say nothing of photographs\nerror: shard 2/2 is " \
        "missing, expected folders of all 2\n"  # fmt: skip


def test_a_folder_is_continued_and_another_runs_refused(workplace: Path) -> None:
    asked = ("scenes", "--count", "2", "-o", "run", "-q")
    assert evaluate(*asked) == ""
    file = workplace / "run/records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    evaluate(*asked)
    assert len(file.read_bytes().splitlines()) == 3
    kept = file.read_bytes()
    said = evaluate(*asked, "--tau", "0.5", code=1)
    assert "records of another run (option tau not set, expected 0.5)" in said
    assert file.read_bytes() == kept
    said = evaluate(*asked, "--template", "cut {expression}", code=1)
    assert "option template not set, expected cut {expression}" in said
    evaluate(*asked, "--tau", "0.5", "--restart")
    assert result_of(workplace / "run")["run"]["options"] == {"tau": 0.5}


def test_what_could_not_be_scored_is_named_and_fails(workplace: Path) -> None:
    said = evaluate(write_lines(workplace, broken=True), "-o", "run", code=1)
    assert "nowhere.png" in said
    result = result_of(workplace / "run")
    metrics = result["metrics"]["full"]
    assert metrics["n"] == 2 and metrics["mIoU"] > 0.5
    assert len([*result["problems"], *result["left out"]]) == 1
    assert "named in run/result.json; the others are scored" in said.splitlines()[-1]
    assert "nowhere.png" in (workplace / "run/report.html").read_text()


def write_instructions(workplace: Path) -> Path:
    """Two scenes in other words."""
    scenes = SceneSet("plain", "test", 2)
    told = [
        RefinedInstruction(
            image_digest(scenes.image(sample)),
            "scene",
            sample.expression,
            f"remove {sample.expression}",
            f"take away {sample.expression}",
        )
        for sample in scenes.samples
    ]
    file = workplace / "told.json"
    file.write_text(InstructionFile("told.json", Origin(), told).to_json())
    return file


def test_instructions_of_a_file_are_said(workplace: Path) -> None:
    asked = ("scenes", "--count", "2", "--instructions", write_instructions(workplace), "-o", "run")
    evaluate(*asked, "--tau", "0.6", "--paper")
    lines = (workplace / "run/records.jsonl").read_text().splitlines()[1:]
    scenes = SceneSet("plain", "test", 2)
    segmenter = Segmenter.from_bundle(provider="cpu", template="take away {expression}")
    for sample, line in zip(scenes.samples, map(json.loads, lines), strict=True):
        image = scenes.image(sample)
        found = segmenter.segment(image, sample.expression, tau=0.6, paper=True)
        assert line["rle"]["counts"] == encode_rle(found.mask_hw)


def test_what_no_sample_can_be_asked_with_is_refused_with_instructions_too(workplace: Path) -> None:
    asked = ("scenes", "--count", "2", "--instructions", write_instructions(workplace), "-o", "run")
    assert "--token-attention" in evaluate(*asked, "--sinks", code=1)
    said = evaluate(*asked, "--template", "cut {expression}", code=1)
    assert "told.json has none of the 2 instructions of scenes plain test, such as 'cut " in said
    assert not (workplace / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["scenes", "--shard", "3/2"], "--shard is '3/2', expected I/N", 2),
        (["scenes", "--limit", "5"], "they take --kind, --split and --count", 2),
        (["x.jsonl", "--count", "5"], "--kind and --count go with scenes", 2),
        (["x.jsonl", "--seed", "5"], "--offset and --seed go with scenes", 2),
        (["x.jsonl", "--columns", "image=a"], "--columns goes with a FILE.parquet", 2),
        (["x.parquet", "--columns", "image"], "--columns is 'image', expected each role once", 2),
        (["scenes", "folder"], "'folder' is one SOURCE too many", 2),
        (["scenes", "--merge"], "--merge needs the shards' folders", 2),
        (["scenes", "d", "--merge", "--tau", "0.7"], "as they are, without --tau", 2),
        (["scenes", "--count", "1", "--tau", "2"], "2, expected 0 to below 1", 2),
        (["scenes", "--split", "val"], "split is 'val', expected one of tuning, test", 1),
        (["nothing"], "'nothing' is not a dataset", 1),
        (["x.jsonl"], "'x.jsonl' is not there", 1),
        (["refcoco"], "refcoco needs --root", 1),
        (["refcoco", "--root", "nowhere"], "nowhere", 1),
    ],
)
def test_what_cannot_be_scored_leaves_nothing(
    workplace: Path, flags: list[str], said: str, code: int
) -> None:
    assert said in evaluate(*flags, code=code)
    assert list(workplace.iterdir()) == []


def test_masks_in_the_records_are_those_that_rism_run_writes(workplace: Path) -> None:
    file = write_lines(workplace)
    evaluate(file, "-o", "run", "--limit", "1")
    line = json.loads((workplace / "run/records.jsonl").read_text().splitlines()[1])
    entry = json.loads(file.read_text().splitlines()[0])
    invoke("run", entry["image"], entry["expression"], "-o", "mask.png", "--provider", "cpu")
    with Image.open(workplace / "mask.png") as picture:
        mask = np.asarray(picture) == 255
    pycocotools = pytest.importorskip("pycocotools.mask")
    assert np.array_equal(pycocotools.decode(line["rle"]).astype(bool), mask)


def test_scenes_need_no_extra(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]
) -> None:
    forget_modules("rism.evaluation.")
    for name in ("pycocotools", "pyarrow", "matplotlib", "tqdm", "torch", "onnx", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, None)
    evaluate("scenes", "--count", "1", "-q")
    assert (workplace / "eval-scenes-plain-test-mini/report.html").is_file()
