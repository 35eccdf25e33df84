"""What speaks for a presence, the rule that weighs it, and the answer where it is too little."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.bundle.confidence_rule import ConfidenceRule, Evidence
from rism.runtime.bundle.manifest import parse_manifest
from rism.runtime.method.equations import ATTENTION_CONSTANT, Localisation
from rism.runtime.method.postprocess import evidence
from tests.conftest import Reseal

RULE = {
    "separability": 0.5, "concentration": 2.0, "agreement": 3.0, "bias": -1.0, "threshold": 0.25,
}  # fmt: skip


def found(
    coarse: Any, refined: Any = (0, 1), scores: Any = (-1, 1), *, reason: str | None = None
) -> Localisation:
    maps = [np.array(each, np.float32) for each in (scores, coarse, refined)]
    return Localisation(*maps, separability=0.75, reason=reason)


@pytest.mark.parametrize(
    ("coarse", "concentration"),
    [
        ([1, 1, 1, 1], 0.0),
        ([0.25] * 64, 0.0),
        ([0, 0, 1, 0], 1.0),
        ([0, 1, 1, 0], 0.5),  # two of four: one bit of two
        ([1, 0.5, 0.25, 0.25], 0.125),  # 1.75 bits of two
        ([0, 0, 0, 0], 0.0),
        ([1], 0.0),
        ([np.nan, 1, 1, 0], 0.5),
        ([np.inf, -1, 0, 1], 1.0),
    ],
)
def test_concentration_of_known_maps(coarse: list[float], concentration: float) -> None:
    refined = np.linspace(0, 1, len(coarse))
    seen = evidence(found(coarse, refined, refined))
    assert seen.concentration == pytest.approx(concentration, abs=1e-6)
    assert seen.separability == 0.75


@pytest.mark.parametrize(
    ("refined", "scores", "agreement"),
    [
        ([0, 0.5, 1], [-3, -2, -1], 1.0),
        ([0, 0.5, 1], [2, 0, -2], -1.0),
        ([0, 1, 0], [1, 1, 1], 0.0),
        ([0, 0, 1, 1], [-1, 1, -1, 1], 0.0),
        ([0, 0, 1], [0, 1, 1], 0.5),
        ([0, 1], [-1e-30, 1e-30], 1.0),
    ],
)
def test_agreement_of_known_maps(
    refined: list[float], scores: list[float], agreement: float
) -> None:
    seen = evidence(found(refined, refined, scores))
    assert seen.agreement == pytest.approx(agreement, abs=1e-9)


def test_no_answer_has_no_evidence() -> None:
    assert evidence(found([0, 1], reason=ATTENTION_CONSTANT)) == Evidence(0.0, 0.0, 0.0)


def test_the_rule_is_a_logistic_regression() -> None:
    rule = ConfidenceRule(**RULE)
    for separability in (0.02, 0.7, 5.0):
        seen = Evidence(separability, 0.3, 0.4)
        odds = np.exp(-1) * separability**0.5 * np.exp(2 * 0.3 + 3 * 0.4)
        assert rule.confidence(seen) == pytest.approx(odds / (1 + odds), rel=1e-12)


def test_no_evidence_overflows() -> None:
    for weight in (1e6, -1e6):
        rule = ConfidenceRule(weight, weight, weight, weight, 0.5)
        for seen in (Evidence(0, 0, 0), Evidence(1e6, 1, 1), Evidence(0, 1, -1)):
            assert 0 <= rule.confidence(seen) <= 1
    least = ConfidenceRule(1, 0, 0, 0, 0.5)
    assert least.confidence(Evidence(0, 0, 0)) == least.confidence(Evidence(1e-3, 0, 0)) > 0


def test_a_manifest_without_a_rule_has_none(manifest_data: dict[str, Any]) -> None:
    assert parse_manifest(manifest_data).method.confidence is None
    manifest_data["method"]["confidence"] = None
    assert parse_manifest(manifest_data).method.confidence is None
    manifest_data["method"]["confidence"] = RULE | {"fitted_on": "scenes"}
    assert parse_manifest(manifest_data).method.confidence == ConfidenceRule(**RULE)


Ruled = Callable[..., Segmenter]


@pytest.fixture
def ruled(tiny_bundle: Path, reseal: Reseal) -> Ruled:
    """The tiny bundle with a rule, opened."""

    def make(rule: dict[str, float], **options: Any) -> Segmenter:
        reseal(tiny_bundle, lambda data: data["method"].update(confidence=rule))
        return Segmenter.from_bundle(tiny_bundle, provider="cpu", threads=1, **options)

    return make


@pytest.mark.parametrize("capture", ["vectors", "scores"])
def test_too_little_confidence_is_an_empty_mask(
    ruled: Ruled, tiny_master: Path, colours: np.ndarray, capture: str
) -> None:
    never = dict.fromkeys(RULE, 0.0) | {"bias": -2.0, "threshold": 0.5}
    segmenter = ruled(never, capture=capture)
    without = Segmenter.from_bundle(tiny_master, provider="cpu", capture=capture, threads=1)
    result, expected = (each.segment(colours, "red") for each in (segmenter, without))
    assert result.reason == (
        "nothing in the image seems to fit: confidence 0.119, expected at least 0.500"
    )
    assert not result.mask.any() and result.mask.shape == (96, 160)
    assert result.score == 0.0 and result.box_xyxy is None
    np.testing.assert_array_equal(result.score_map, expected.score_map)
    assert (result.score_map > 0).any()
    for options in ({"always": True}, {"paper": True}):
        kept, true = (each.segment(colours, "red", **options) for each in (segmenter, without))
        assert kept.reason is None and kept.mask.any()
        assert kept.confidence == result.confidence == pytest.approx(1 / (1 + np.exp(2)))
        np.testing.assert_array_equal(kept.mask, true.mask)
        assert kept.score == true.score > 0
        assert kept.doubt == "confidence 0.119 is below 0.5" and result.doubt is None
    assert segmenter.segment(colours, "red", confidence=0.1).mask.any()
    assert segmenter.segment(colours, "red", paper=True, confidence=0.2).reason is not None
    with pytest.raises(InputError, match="always and confidence exclude each other"):
        segmenter.segment(colours, "red", always=True, confidence=0.2)
    asked = segmenter.segment(colours, "red", paper=True, always=False)
    assert asked.reason == result.reason and not asked.mask.any()


def test_confidence_is_the_rule_of_the_evidence(ruled: Ruled, colours: np.ndarray) -> None:
    segmenter = ruled(RULE | {"threshold": 0.0})
    for result in segmenter.segment(colours, ["red", "green", "the"]):
        seen = Evidence(result.separability, result.concentration, result.agreement)
        assert result.confidence == ConfidenceRule(**RULE).confidence(seen)
    red = segmenter.segment(colours, "red")
    assert json.loads(json.dumps(red.to_json_dict(), allow_nan=False)) == red.to_json_dict()
    x = red.coarse.ravel().astype(np.float64)
    shares = x[x > 0] / x.sum()
    entropy = -(shares * np.log(shares)).sum()
    assert red.concentration == pytest.approx(1 - entropy / np.log(x.size), abs=1e-9)
    correlation = np.corrcoef(red.refined.ravel(), red.score_map.ravel())[0, 1]
    assert red.agreement == pytest.approx(correlation, abs=1e-6)


def test_a_reason_of_the_method_comes_first(ruled: Ruled, colours: np.ndarray) -> None:
    segmenter = ruled(RULE | {"threshold": 1.0})
    grey = np.full_like(colours, 128)
    result = segmenter.segment(grey, "red")
    assert result.reason == "the attention map is constant"
    assert segmenter.segment(grey, "red", always=True).reason == result.reason
    assert (result.separability, result.concentration, result.agreement) == (0.0, 0.0, 0.0)
    assert 0 <= result.confidence < 1


def test_evidence_does_not_depend_on_what_is_left_of_the_answer(
    tiny_master: Path, colours: np.ndarray
) -> None:
    """A rule is fitted to what the method found, before one part or a contour is chosen."""
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    colours[:, 120:] = (220, 20, 20)
    asked = "red small"
    some = [
        segmenter.segment(colours, asked, instances=on, upsample=way)
        for on in (True, False)
        for way in ("guided", "bilinear")
    ]
    assert len({(s.separability, s.concentration, s.agreement) for s in some}) == 1
    assert (some[0].score_map > 0).sum() < (some[2].score_map > 0).sum()
