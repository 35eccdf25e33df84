"""What a demonstrator cannot know is said, not answered with a number."""

import pytest

from rism.evaluation.scenes.judged import judged_scene
from rism.runtime import Segmenter
from rism.runtime.bundle.scope import Scope
from tests.paths import STREET


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_bundle(provider="cpu", threads=1)


@pytest.mark.parametrize(
    ("expression", "known"),
    [
        ("the red car", True),
        ("Car on the left", True),
        ("the small one next to the house", True),
        ("on the left the car", True),
        ("car, red", True),
        ("Where is the red car?", True),
        ("i am looking for the car", True),
        ("where is the zebra next to the car", False),
        ("the zebra", False),
        ("the zebra next to the car", False),
        ("the carpet", False),
        ("the green", False),
        ("!", False),
    ],
)
def test_the_thing_itself_is_named_by_a_known_noun(expression: str, known: bool) -> None:
    said = Scope(("car", "one")).unknown(expression, f"remove {expression}")
    assert (said is None) is known
    if not known:
        assert said == f"the demonstrator knows nothing that '{expression}' names, only car, one"


def test_a_misspelt_noun_is_known_and_a_long_list_is_cut() -> None:
    scope = Scope((*(f"noun{index}" for index in range(39)), "crocodile"))
    assert scope.unknown("the corcodile", "remove the corcodile") is None
    said = scope.unknown("the locomotive", "remove the locomotive")
    assert said is not None and said.endswith("noun28, noun29 and 10 more")


def test_what_a_template_or_a_refiner_names_counts() -> None:
    scope = Scope(("car",))
    assert scope.unknown("it", "remove the red car") is None
    assert scope.unknown("red", "remove the car that is red") is None
    assert scope.unknown("it", "remove it") is not None


def test_words_that_a_demonstrator_does_not_know(segmenter: Segmenter) -> None:
    why = "the demonstrator knows nothing that 'the walrus' names, only "
    result = segmenter.segment(STREET, "the walrus")
    assert result.reason == result.outside and result.outside.startswith(why)
    assert not result.mask.any() and result.score == 0 and result.doubt is None
    kept = segmenter.segment(STREET, "the walrus", always=True)
    assert kept.mask.any() and kept.reason is None and kept.doubt == result.outside
    assert result.confidence is kept.confidence is None and kept.demonstrator
    assert kept.to_json_dict()["doubt"] == kept.to_json_dict()["outside"] == result.outside


def test_drawn_scenes_are_known(segmenter: Segmenter) -> None:
    for kind in ("plain", "same-kind", "fine"):
        for index in range(2):
            scene, expression = judged_scene(index, kind=kind)
            found = segmenter.segment(scene.image_hwc, expression.text)
            assert found.outside is None and found.confidence is not None


def test_little_confidence_is_doubtful_and_can_be_refused(segmenter: Segmenter) -> None:
    doubtful = segmenter.segment(STREET, "the red car", always=True)
    assert doubtful.confidence < 0.5 and doubtful.mask.any()
    assert doubtful.doubt == f"confidence {doubtful.confidence:.3f} is below 0.5"
    refused = segmenter.segment(STREET, "the red car", confidence=0.5)
    assert refused.reason.endswith("expected at least 0.500") and not refused.mask.any()
    sure = segmenter.segment(STREET, "the green van", confidence=0.5)
    assert sure.mask.any() and sure.doubt is None
