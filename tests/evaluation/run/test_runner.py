"""Runs that stop and go on, are divided and put together: always the same scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.evaluation.metrics.iou import auroc, overlap, summarise
from rism.evaluation.report.outcome import conclude, merge
from rism.evaluation.run.record_log import RECORDS, RESULT, read_records, read_run, resume
from rism.evaluation.run.records import Run
from rism.evaluation.run.runner import digest, score, try_options
from rism.runtime import Segmenter
from rism.runtime.errors import InputError
from rism.runtime.method.upsampling import upsample
from rism.runtime.result.rle import decode_rle
from tests.evaluation.small_set import SmallSet

Evaluate = Callable[..., dict[str, Any]]
SAME = ("metrics", "groups", "histogram", "problems", "counts")


@pytest.fixture(scope="module")
def segmenter(tiny_master: Path) -> Segmenter:
    return Segmenter.from_bundle(tiny_master, provider="cpu")


def run_of(dataset: SmallSet, segmenter: Segmenter, **changes: Any) -> Run:
    return replace(dataset.run(bundle_digest=segmenter.bundle.digest), **changes)


@pytest.fixture
def evaluate(segmenter: Segmenter) -> Evaluate:
    """Score a dataset into a folder, and return what result.json says."""

    def call(dataset: SmallSet, folder: Path, **changes: Any) -> dict[str, Any]:
        run = run_of(dataset, segmenter, **changes)
        problems = score(dataset, segmenter, run, folder=folder, options=run.options)
        return conclude(dataset, folder, problems)

    return call


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in SAME)


def without_times(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()[1:]]
    return [{key: value for key, value in line.items() if key != "ms"} for line in lines]


def test_scores_are_those_of_every_expression_asked_alone(
    evaluate: Evaluate, segmenter: Segmenter, tmp_path: Path
) -> None:
    dataset = SmallSet()
    result = evaluate(dataset, tmp_path / "run", maps=True)
    assert dataset.read[:4] == ["0", "1", "2", "3"], "each image once for all its expressions"
    alone, coarse = [], []
    for sample in dataset.samples:
        found = segmenter.segment(dataset.image(sample), sample.expression)
        alone.append(overlap(found.mask, dataset.mask(sample)))
        coarse.append(overlap(upsample(found.coarse, found.plan) > 0.5, dataset.mask(sample)))
    assert result["metrics"]["full"] == summarise(alone)
    assert result["metrics"]["CAM > 0.5"] == summarise(coarse)
    assert result["metrics"]["full"]["mIoU"] > 0.7
    assert result["groups"]["green"] == summarise(alone[1::3])
    assert sum(result["histogram"]) == len(alone)
    assert json.loads((tmp_path / "run" / RESULT).read_text()) == result
    for record, sample in zip(read_records(tmp_path / "run"), dataset.samples, strict=True):
        mask = decode_rle(record.counts, record.size_hw)
        assert overlap(mask, dataset.mask(sample)) == record.overlap
        assert record.sample == sample


def test_a_run_killed_at_any_byte_goes_on_to_the_same_records(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    dataset = SmallSet(2)
    run = run_of(dataset, segmenter)
    score(dataset, segmenter, run, folder=tmp_path / "whole")
    text = (tmp_path / "whole" / RECORDS).read_text()
    head = text.index("\n") + 1
    # Inside the header, inside each record, and at their ends.
    cuts = [0, 211, head - 1, *range(head, len(text), 350), len(text) - 1, len(text)]
    for cut in cuts:
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / RECORDS).write_text(text[:cut])
        again = SmallSet(2)
        assert not score(again, segmenter, run, folder=folder)
        # Three records of each image, after the header; what is complete is not asked again.
        complete = max(text[:cut].count("\n") - 1, 0) // 3
        assert again.read == ["0", "1"][complete:]
        assert without_times((folder / RECORDS).read_text()) == without_times(text), cut


DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"tau": 0.5}}, "option tau not set, expected 0.5"),
    ({"bundle_digest": "f" * 64}, "bundle digest [0-9a-f]{12}, expected f{12}"),
    ({"gt_merge": "union"}, "gt merge legacy, expected union"),
    ({"provider": "cuda:0"}, "provider cpu, expected cuda:0"),
    ({"shard": (1, 2)}, "shard 1/1, expected 1/2"),
    ({"maps": True}, "maps False, expected True"),
]


def test_another_run_is_refused_with_what_differs(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(SmallSet(1), tmp_path)
    before = (tmp_path / RECORDS).read_bytes()
    for changes, said in DIFFERENCES:
        with pytest.raises(InputError, match=said) as caught:
            evaluate(SmallSet(1), tmp_path, **changes)
        assert "--restart" in str(caught.value)
        assert (tmp_path / RECORDS).read_bytes() == before


def test_another_dataset_is_refused_and_restart_starts_over(
    evaluate: Evaluate, segmenter: Segmenter, tmp_path: Path
) -> None:
    evaluate(SmallSet(2), tmp_path)
    with pytest.raises(InputError, match="dataset small test, expected other"):
        evaluate(SmallSet(2, name="other"), tmp_path)
    fewer = SmallSet(1)
    with pytest.raises(InputError, match="'1:red' that is not in this dataset"):
        evaluate(fewer, tmp_path)
    assert len(list(read_records(tmp_path))) == 6
    score(fewer, segmenter, run_of(fewer, segmenter), folder=tmp_path, restart=True)
    assert not (tmp_path / RESULT).exists()  # it said what was there before
    assert len(list(read_records(tmp_path))) == 3


def test_a_dataset_that_grew_is_continued(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(SmallSet(2, words=("red", "green")), tmp_path / "run", started="before")
    grown = SmallSet(3, words=("red", "green", "blue"))
    result = evaluate(grown, tmp_path / "run", started="after")
    assert same(result, evaluate(grown, tmp_path / "whole"))
    assert {"0", "1", "2"} == {*grown.read}
    run = read_run(tmp_path / "run")
    assert (run.samples, run.started) == (9, "before")
    assert run.samples_digest == digest(grown.samples)


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    dataset = SmallSet(3, missing=["1"], broken=["0:green"], words=("red", "\0", "green"))
    result = evaluate(dataset, tmp_path)
    problems = {problem["where"]: problem["what"] for problem in result["problems"]}
    assert set(problems) == {"0:green (0)", "0:\0 (0)", "2:\0 (2)"} | {
        f"1:{word} (1)" for word in ("red", "\0", "green")
    }
    assert problems["1:red (1)"] == "image '1.png' is not there"
    assert "polygon" in problems["0:green (0)"]
    assert result["counts"] == {
        "samples": 9, "pictures": 3, "scored": 3, "not scored": 6, "left out on opening": 0,
    }  # fmt: skip
    assert result["metrics"]["full"]["n"] == 3
    nothing = evaluate(SmallSet(2, missing=["0", "1"]), tmp_path / "nothing")
    assert nothing["metrics"] == {"full": {"n": 0}} and len(nothing["problems"]) == 6
    # After the repair everything is scored, and earlier samples are not repeated.
    mended = SmallSet(3, words=("red", "\0", "green"))
    assert evaluate(mended, tmp_path)["counts"]["scored"] == 6
    assert "2" not in {*mended.read[:2]}


def test_records_that_two_runs_wrote_are_not_summed_up(evaluate: Evaluate, tmp_path: Path) -> None:
    dataset = SmallSet(1)
    evaluate(dataset, tmp_path)
    with (tmp_path / RECORDS).open("ab") as stream:
        stream.write((tmp_path / RECORDS).read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(InputError, match="has 4 records of 3 samples, expected 3"):
        conclude(dataset, tmp_path, [])


def test_what_is_absent_is_kept_out_of_the_metrics(evaluate: Evaluate, tmp_path: Path) -> None:
    plain = evaluate(SmallSet(), tmp_path / "plain")
    both = evaluate(SmallSet(absent=True), tmp_path / "both")
    assert both["metrics"] == plain["metrics"] and both["histogram"] == plain["histogram"]
    records = [record for record in read_records(tmp_path / "both") if not record.sample.present]
    assert both["absent"]["n"] == len(records) == 12
    assert both["absent"]["answered empty"] == np.mean([record.empty for record in records])
    assert both["absent"]["groups"] == {
        "none": {k: both["absent"][k] for k in ("n", "answered empty")}
    }
    present = [r.separability for r in read_records(tmp_path / "both") if r.sample.present]
    found = both["absent"]["AUROC of separability"]
    assert found == auroc(present, [record.separability for record in records])
    # The bundle has no rule for a confidence.
    assert "AUROC of confidence" not in both["absent"]
    assert "absent" not in plain


def test_shards_together_are_the_whole_run(evaluate: Evaluate, tmp_path: Path) -> None:
    dataset = SmallSet(5, broken=["3:red"])
    whole = evaluate(dataset, tmp_path / "whole")
    folders = [tmp_path / f"part-{number}" for number in (1, 2, 3)]
    parts = [evaluate(dataset, folder, shard=(at, 3)) for at, folder in enumerate(folders, 1)]
    assert [part["counts"]["samples"] for part in parts] == [6, 6, 3]
    problems = merge(dataset, folders[::-1], tmp_path / "merged")
    assert same(conclude(dataset, tmp_path / "merged", problems), whole)
    assert read_run(tmp_path / "merged").shard == (1, 1)
    keys = [sorted(r.key for r in read_records(tmp_path / name)) for name in ("whole", "merged")]
    assert keys[0] == keys[1]


def test_shards_that_do_not_fit_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    dataset = SmallSet(4)
    one, two, other, third = (tmp_path / name for name in ("one", "two", "other", "third"))
    evaluate(dataset, one, shard=(1, 2))
    evaluate(dataset, two, shard=(2, 2))
    evaluate(dataset, other, shard=(2, 2), options={"tau": 0.5})
    evaluate(dataset, third, shard=(3, 3))

    def refused(*folders: Path, of: SmallSet = dataset) -> str:
        with pytest.raises(InputError) as caught:
            merge(of, folders, tmp_path / "merged")
        assert not (tmp_path / "merged" / RECORDS).exists()
        return str(caught.value)

    assert "shard 2/2 is missing" in refused(one)
    assert "shard 1/2 is given twice" in refused(one, one)
    assert "option tau 0.5, expected not set" in refused(one, other)
    assert "is shard 3/3" in refused(one, third)
    assert "expected the same" in refused(one, two, of=SmallSet(4, words=("red",)))
    lines = (two / RECORDS).read_bytes().splitlines(keepends=True)
    (two / RECORDS).write_bytes(b"".join(lines[:-2]))
    assert "lacks 2 of its samples" in refused(one, two)
    (two / RECORDS).write_bytes(b"".join([*lines, lines[-1]]))
    assert "is there twice" in refused(one, two)
    (two / RESULT).unlink()
    assert f"has no {RESULT}" in refused(one, two)
    assert "has no records.jsonl" in refused(one, tmp_path / "nowhere")


def test_damaged_records_are_refused(
    evaluate: Evaluate, segmenter: Segmenter, tmp_path: Path
) -> None:
    dataset = SmallSet(1)
    evaluate(dataset, tmp_path)
    head, _, rest = (tmp_path / RECORDS).read_text().partition("\n")
    for old, new, said in (
        ('"intersection": ', '"intersection": -', "intersection that is larger"),
        ('"score": ', '"score": "x", "was": ', "'score' is x, expected a finite number"),
        ('"score": ', '"score": Infinity, "was": ', "'score' is inf"),
        ('"rle": {', '"rle": 5, "was": {', "'rle' is 5, expected dict"),
        ('{"key"', '["key"', "is not a JSON object"),
        ('"present": true', '"present": 1', "'present' is 1, expected bool"),
        ('"key": "0:red"', '"key": "9:red"', "not in this dataset"),
    ):
        assert old in rest
        (tmp_path / RECORDS).write_text(f"{head}\n{rest.replace(old, new, 1)}")
        with pytest.raises(InputError, match=said):
            resume(tmp_path, run_of(dataset, segmenter), {"0": dataset.samples})


def test_an_option_that_no_sample_can_be_asked_with_fails_at_once(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"tau is 2, expected a number from 0"):
        try_options(segmenter, {"tau": 2})
