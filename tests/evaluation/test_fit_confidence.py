"""A confidence rule from records, and `rism fit-confidence`, which stores it in a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rism.evaluation.datasets.sample import Sample
from rism.evaluation.fit_confidence import fit_confidence
from rism.evaluation.metrics.iou import Overlap, auroc
from rism.evaluation.run import record_log
from rism.evaluation.run.records import Record, Run
from rism.runtime import Segmenter
from rism.runtime.bundle.confidence_rule import Evidence
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.errors import InputError
from tests.cli.conftest import invoke


def records(present: int, absent: int, *, apart: float = 1.0) -> list[Record]:
    """Evidence from two normal distributions; what is there is more concentrated."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(present + absent):
        there = number < present
        shift = apart if there else 0.0
        separability, concentration, agreement = rng.normal(shift, 0.5, 3)
        found.append(
            Record(
                Sample(str(number), str(number), "it", present=there), Overlap(0, 1, 0, 1), False,
                0.1, float(np.exp(separability)), float(concentration), float(agreement), None,
                None, 1.0, (2, 2), "4",
            )
        )  # fmt: skip
    return found


def test_the_rule_tells_present_from_absent_and_keeps_its_promise() -> None:
    given = records(200, 200)
    fit = fit_confidence(given, lost=0.05)
    sure = {
        there: [
            fit.rule.confidence(Evidence(r.separability, r.concentration, r.agreement))
            for r in given
            if r.sample.present == there
        ]
        for there in (True, False)
    }
    assert (fit.present, fit.absent) == (200, 200)
    assert fit.auroc == auroc(sure[True], sure[False]) > 0.97
    below = {there: np.mean(np.array(each) < fit.rule.threshold) for there, each in sure.items()}
    assert fit.lost == below[True] <= 0.05
    assert fit.rejected == below[False] > 0.8
    # All three were shifted alike.
    assert min(fit.rule.separability, fit.rule.concentration, fit.rule.agreement) > 1


def test_it_is_the_optimum_of_the_likelihood() -> None:
    """The gradient of the penalised loss is zero; independent of how the fit was found."""
    given = records(120, 90, apart=0.7)
    rule = fit_confidence(given).rule
    features = np.array(
        [[np.log(r.separability), r.concentration, r.agreement, 1.0] for r in given]
    )
    there = np.array([r.sample.present for r in given])
    weights = np.array([rule.separability, rule.concentration, rule.agreement, rule.bias])
    penalty = 1e-3 * features.var(axis=0) * weights  # none of the bias, whose feature is constant
    wrong = 1 / (1 + np.exp(-features @ weights)) - there
    assert np.abs(features.T @ wrong / len(given) + penalty).max() < 1e-4


@pytest.mark.parametrize(
    ("present", "absent", "lost", "says"),
    [
        (60, 20, 0.01, "60 present and 20 absent samples, expected at least 50 of each"),
        (0, 80, 0.01, "0 present and 80 absent"),
        (60, 60, 0.5, "expected 0 to below 0.5"),
        (60, 60, -0.1, "expected 0 to below 0.5"),
    ],
)
def test_too_little_is_refused(present: int, absent: int, lost: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fit_confidence(records(present, absent), lost=lost)


@pytest.fixture
def run(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A folder of records of the tiny bundle."""
    bundle = Bundle.open(tiny_bundle)
    folder = tmp_path / "run"
    folder.mkdir()
    facts = {"bundle": "tiny", "capture": "vectors", "provider": "cpu", "precision": "float32"}
    header = Run("made", 140, "0" * 64, "legacy", bundle_digest=bundle.digest, **facts)
    record_log.begin(folder, header)
    record_log.append(folder, records(70, 70))
    return folder


def fit(*arguments: object, code: int = 0) -> str:
    return invoke("fit-confidence", *arguments, code=code).output


def test_a_test_split_is_refused_by_name(run: Path, tiny_bundle: Path) -> None:
    records_file = run / record_log.RECORDS
    whole, before = records_file.read_text(), (tiny_bundle / "manifest.json").read_bytes()
    for name, is_test in {
        "scenes absent test": True, "refcoco unc testA": True, "mine_test.jsonl": True,
        "scenes absent tuning": False, "contest.jsonl": False, "refcocog umd val": False,
    }.items():  # fmt: skip
        records_file.write_text(whole.replace('"dataset": "made"', f'"dataset": "{name}"'))
        assert name in records_file.read_text()
        said = fit(run, "--bundle", tiny_bundle, code=int(is_test))
        assert ((tiny_bundle / "manifest.json").read_bytes() == before) == is_test, (name, said)
        assert (f"is a run on '{name}', a test split" in said) == is_test
        (tiny_bundle / "manifest.json").write_bytes(before)
    records_file.write_text(whole.replace('"dataset": "made"', '"dataset": "a test"'))
    assert "stored in" in fit(run, "--bundle", tiny_bundle, "--allow-test-split")


def test_the_built_in_bundle_is_not_taught(run: Path) -> None:
    mini, records_file = Bundle.open(resolve_bundle(), verify=False), run / record_log.RECORDS
    digest = record_log.read_run(run).bundle_digest
    records_file.write_text(records_file.read_text().replace(digest, mini.digest))
    assert "is part of the installed package" in fit(run, "--bundle", "mini", code=1)
    assert Bundle.open(mini.path, verify=False).digest == mini.digest
    fit(run, "--bundle", "mini", "--dry-run")


def test_the_command_stores_what_the_segmenter_uses(
    run: Path, tiny_bundle: Path, colours: np.ndarray
) -> None:
    before = (tiny_bundle / "manifest.json").read_bytes()
    fit(run, "--bundle", tiny_bundle, "--dry-run")
    assert (tiny_bundle / "manifest.json").read_bytes() == before
    said = fit(run, "--bundle", tiny_bundle, "--lost", 0.1)
    assert "70 present and 70 absent: AUROC 0.9" in said
    stored = json.loads((tiny_bundle / "manifest.json").read_text())["method"]["confidence"]
    assert stored["threshold"] > 0
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    assert segmenter.segment(colours, "green").confidence is not None
    # The manifest is another one now: the run is of the bundle as it was.
    said = fit(run, "--bundle", tiny_bundle, code=1)
    assert "not of the bundle" in said and "score it again" in said
