"""What can be chosen for a segmentation, what it is otherwise, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.bundle.manifest import Method
from rism.runtime.options import ResolvedOptions, SegmentOptions, drop_unset, resolve_options

METHOD = Method(
    tau=0.7, timestep=1.0, double_blocks=1, single_blocks=1, feature_block=1, feature_site="mmsa",
    feature_dim=3, prototype="equation",
)  # fmt: skip
DEFAULTS = ResolvedOptions(
    tau=0.7, prototype="equation", upsample="guided", spatial_prior=False, instances=False,
    confidence=None, always=False, magnets="", sinks=False, prompt_weights=None,
)  # fmt: skip
PUBLISHED = replace(DEFAULTS, upsample="bilinear", always=True)


def settled(capture: str = "vectors", **choices: Any) -> ResolvedOptions:
    return resolve_options(SegmentOptions(**choices), METHOD, capture)


@pytest.mark.parametrize("capture", ["vectors", "matrices", "scores"])
def test_defaults(capture: str) -> None:
    assert settled(capture) == DEFAULTS
    assert settled(capture, paper=True) == PUBLISHED
    assert settled(capture, paper=False) == settled(capture)


def test_defaults_are_the_bundles() -> None:
    method = replace(METHOD, tau=0.35, prototype="cosine")
    for paper in (False, True):
        found = resolve_options(SegmentOptions(paper=paper), method, "vectors")
        assert (found.tau, found.prototype) == (0.35, "cosine")


def test_none_is_the_default() -> None:
    nothing = dict.fromkeys(SegmentOptions.__annotations__)
    for capture in ("vectors", "scores"):
        assert settled(capture, **nothing) == settled(capture)
    assert settled(**nothing | {"paper": True}) == PUBLISHED
    assert drop_unset(**nothing) == {}


@pytest.mark.parametrize(
    "choices",
    [
        {"tau": 0.2}, {"prototype": "cosine"}, {"upsample": "bilinear"}, {"upsample": "guided"},
        {"spatial_prior": False}, {"spatial_prior": True}, {"instances": False},
        {"instances": np.True_}, {"always": True}, {"always": False}, {"magnets": "a with"},
        {"sinks": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("paper", [False, True])
def test_what_is_chosen_holds_and_changes_nothing_else(
    choices: dict[str, Any], paper: bool
) -> None:
    expected = replace(PUBLISHED if paper else DEFAULTS, **choices)
    assert settled(paper=paper, **choices) == expected


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.float16])
def test_numbers_of_numpy(kind: type) -> None:
    tau = settled(tau=kind(0.25)).tau
    assert tau == 0.25 and type(tau) is float
    assert settled(tau=0).tau == settled(tau=np.int64(0)).tau == 0.0
    assert settled(tau=np.nextafter(1.0, 0.0)).tau < 1


@pytest.mark.parametrize(
    "tau",
    [1.0, 1, -0.01, float("nan"), np.float32("nan"), float("inf"), "0.8", True, False, [0.8], 1j,
     np.array(0.8), np.array([0.8]), b"1"],
)  # fmt: skip
def test_tau_is_a_number_below_1(tau: object) -> None:
    for capture in ("vectors", "scores"):
        with pytest.raises(InputError, match=r"^tau is .*, expected a number from 0 to below 1"):
            settled(capture, tau=tau)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"prototype": "mean"}, r"^prototype is 'mean', expected equation or cosine$"),
        ({"prototype": np.zeros(2)}, r"^prototype is '\[0. 0.\]', expected equation or cosine$"),
        ({"upsample": "bicubic"}, r"^upsample is 'bicubic', expected guided or bilinear$"),
        ({"upsample": True}, r"^upsample is 'True', expected guided or bilinear$"),
        ({"instances": "no"}, r"^instances is 'no', expected True or False$"),
        ({"always": 1}, r"^always is '1', expected True or False$"),
        ({"paper": "False"}, r"^paper is 'False', expected True or False$"),
        ({"spatial_prior": 0.5}, r"^spatial_prior is '0.5', expected True or False$"),
        ({"sinks": "yes\n"}, r"^sinks is 'yes ?', expected True or False$"),
        ({"magnets": [1]}, r"^magnets are '\[1\]', expected words"),
        ({"confidence": 1.5}, r"^confidence is 1.5, expected a number from 0 to 1, such as 0.5$"),
        ({"confidence": True}, r"^confidence is True, expected a number from 0 to 1"),
        ({"confidence": 0.5}, r"^the bundle's confidence was never fitted, so none can be"),
        ({"foo": 1}, r"^there is no option 'foo', expected some of tau, prompt_weights, .*paper$"),
        ({"Tau": 0.5}, r"^there is no option 'Tau', expected"),
        ({"up" * 500: 1}, r"^there is no option 'up.{1,50}', expected"),
    ],
)
def test_what_is_not_known_is_refused(choices: dict[str, Any], message: str) -> None:
    for capture in ("vectors", "scores"):
        with pytest.raises(InputError, match=message) as error:
            settled(capture, **choices)
        assert "\n" not in str(error.value)


def test_what_a_graph_holds_cannot_be_asked_of_it() -> None:
    with pytest.raises(InputError, match=r"spatial prior cannot .*use capture 'vectors'$"):
        settled("scores", spatial_prior=True)
    with pytest.raises(InputError, match=r"spatial prior cannot"):
        settled("scores", spatial_prior=True, paper=True)
    assert not settled("scores", spatial_prior=False).spatial_prior
    with pytest.raises(InputError, match=r"prototype 'cosine' cannot .*'equation': use capture"):
        settled("scores", prototype="cosine")
    assert settled("scores", prototype="equation", tau=0.1, instances=True).tau == 0.1


def test_a_segmenter_refuses_before_it_looks(segmenter: Segmenter) -> None:
    some: Any
    for some, message in (({"foo": 1}, "no option 'foo'"), ({"tau": 2}, "tau is 2")):
        with pytest.raises(InputError, match=message):
            segmenter.segment("there is no such image.png", "red", **some)


def test_paper_is_the_sum_of_its_parts(segmenter: Segmenter, colours: np.ndarray) -> None:
    colours[:, 120:] = (220, 20, 20)
    words = ["red", "right red", "small green"]
    own = segmenter.segment(colours, words, paper=True)
    parts = segmenter.segment(colours, words, upsample="bilinear", always=True)
    for one, other in zip(own, parts, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.score_map, other.score_map)
        np.testing.assert_array_equal(one.scores_hw > 0, one.mask)
    ours = segmenter.segment(colours, words, spatial_prior=True, instances=True)
    # The red bar on the right alone, with the words and the image's edge.
    assert ours[1].mask[:, 120:].all() and not ours[1].mask[:, :118].any()
    assert own[1].mask[:, :50].any()


def test_places_and_parts_of_a_graph_with_the_method_inside(
    tiny_master: Path, colours: np.ndarray
) -> None:
    """Its threshold is out of reach, its parts are not."""
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1, capture="scores")
    colours[:, 120:] = (220, 20, 20)
    left, both = segmenter.segment(colours, ["left red", "red"], instances=True)
    assert both.mask[:, :50].any() and both.mask[:, 130:].any()
    assert left.mask[:, :50].any() and not left.mask[:, 100:].any()
    off = segmenter.segment(colours, "left red")
    np.testing.assert_allclose(off.score_map, both.score_map, atol=1e-5)
    np.testing.assert_allclose(left.refined, both.refined, atol=1e-5)
