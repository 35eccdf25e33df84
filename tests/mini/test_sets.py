"""The sets of questions are what their names say, and rism eval reads what is written of them."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from mini.batches import union
from mini.scenes import HELD_OUT, SceneMaker
from mini.sets import SETS, write
from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_what_its_name_says(stage: SceneMaker, name: str) -> None:
    for case in SETS[name].cases(stage, 8, "tuning"):
        things, targets = case.scene.things, case.question.targets
        assert bool(targets) == (name not in ("absent", "unknown words"))
        assert (len(targets) > 1) == (name == "all")
        held = {thing.style in HELD_OUT for thing in things}
        assert held == {name == "held-out style"}
        if name == "same kind":
            kinds = [thing.kind for thing in things]
            assert kinds.count(kinds[targets[0]]) > 1
        if name == "relations":
            assert case.question.form == "relation"
        if name == "paraphrases":
            assert case.question.text != case.question.canonical


def test_what_is_written_is_a_dataset(stage: SceneMaker, tmp_path: Path) -> None:
    lines = []
    for name in ("seen styles", "absent"):
        lines += write(name, SETS[name].cases(stage, 3, "test"), tmp_path)
    (tmp_path / "scenes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = open_dataset(DatasetRequest(str(tmp_path / "scenes.jsonl")))
    assert not dataset.problems
    assert [sample.group for sample in dataset.samples] == 3 * ["seen styles"] + 3 * ["absent"]
    cases = [*SETS["seen styles"].cases(stage, 3, "test"), *SETS["absent"].cases(stage, 3, "test")]
    for sample, case in zip(dataset.samples, cases, strict=True):
        assert sample.present == bool(case.question.targets)
        assert np.array_equal(dataset.image(sample), case.scene.image_hwc)
        assert np.array_equal(dataset.mask(sample), union(case.scene, case.question.targets))
