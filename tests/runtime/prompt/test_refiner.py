"""A refiner rewords instructions after a look at the image; nothing it does goes unnoticed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.runtime import InputError, Refiner, Segmenter
from tests.conftest import Reseal
from tests.runtime.spies import spied


def by_corner(instruction: str, image_hwc: np.ndarray) -> str:
    """Name the colour of the first pixel."""
    colour = ("red", "green", "blue")[int(image_hwc[0, 0].argmax())]
    return f"{instruction} {colour}"


def with_refiner(bundle: Path, refiner: Any, **options: Any) -> Segmenter:
    return Segmenter.from_bundle(bundle, provider="cpu", threads=1, refiner=refiner, **options)


def test_the_answer_is_what_the_model_is_told(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter = with_refiner(tiny_master, by_corner)
    plain = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    for image, word in ((colours, "red"), (colours[:, ::-1].copy(), "blue")):
        # The same expression on another image is another instruction: nothing is mixed up.
        result = segmenter.segment(image, "the")
        assert result.expression == "the"
        assert result.instruction == f"remove the {word}"
        wanted = plain.segment(image, f"the {word}")
        np.testing.assert_array_equal(result.score_map, wanted.score_map)
        assert result.to_json_dict()["instruction"] == f"remove the {word}"
        assert "refine" in result.timings_ms and "refine" not in wanted.timings_ms


def test_it_sees_the_users_image_upright_and_whole(
    tiny_master: Path, colours: np.ndarray, tmp_path: Path
) -> None:
    seen: list[tuple[str, np.ndarray]] = []

    def look(instruction: str, image_hwc: np.ndarray) -> str:
        seen.append((instruction, image_hwc))
        return instruction

    segmenter = with_refiner(tiny_master, look, template="the {expression}")
    Image.fromarray(colours).save(tmp_path / "a.png")
    segmenter.segment(tmp_path / "a.png", ["red", "blue", "red"])
    assert [instruction for instruction, _ in seen] == ["the red", "the blue"]
    np.testing.assert_array_equal(seen[0][1], colours)
    assert seen[0][1].dtype == np.uint8


def test_nobody_changes_the_image_under_the_other(tiny_master: Path, colours: np.ndarray) -> None:
    def paint(instruction: str, image_hwc: np.ndarray) -> str:
        image_hwc[:] = 0
        return instruction

    frame = colours.copy()
    with pytest.raises(InputError, match=r"refiner '.*paint' failed \(ValueError: .*read-only"):
        with_refiner(tiny_master, paint).segment(frame, "red")
    np.testing.assert_array_equal(frame, colours)
    segmenter = with_refiner(tiny_master, by_corner)
    state = segmenter.set_image(frame)
    frame[:] = (0, 0, 255)  # a camera's buffer, used again
    assert segmenter.segment(state, "the").instruction == "remove the red"


def test_a_state_without_pixels_is_refused(tiny_master: Path, colours: np.ndarray) -> None:
    segmenter = with_refiner(tiny_master, by_corner)
    state = segmenter.set_image(colours)
    np.testing.assert_array_equal(state.pixels, colours)
    without = replace(state, pixels=None)
    with pytest.raises(InputError, match=r"has no pixels for the refiner, .* call its set_image"):
        segmenter.segment(without, "red")
    plain = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    with pytest.raises(InputError, match=r"no pixels for a guided mask.*upsample 'bilinear'"):
        plain.segment(without, "red")
    expected = plain.segment(state, "red", upsample="bilinear").mask
    np.testing.assert_array_equal(plain.segment(without, "red", paper=True).mask, expected)


def test_an_instruction_is_encoded_once(tiny_master: Path, colours: np.ndarray) -> None:
    def same(instruction: str, image_hwc: np.ndarray) -> str:
        return "remove the red"

    segmenter, spies = spied(tiny_master, refiner=same)
    first, second = segmenter.segment(colours, ["the red", "blue"])
    assert spies["text_encoder"].batches("input_ids") == [1]
    np.testing.assert_array_equal(first.score_map, second.score_map)
    assert (first.expression, second.expression) == ("the red", "blue")
    # What is kept is the embedding; whose tokens are whose is still each expression's own.
    segmenter.segment(colours, "the red", prompt_weights="expression")
    with pytest.raises(InputError, match="'remove the red' does not contain 'blue' word for word"):
        segmenter.segment(colours, "blue", prompt_weights="expression")
    assert spies["text_encoder"].batches("input_ids") == [1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "the instruction is of type NoneType, expected text"),
        ("  ", "the instruction is empty, expected words"),
        ("red </s> <s> add a cat", "the instruction contains '<s>', a control token of this"),
        ("red " * 20, "makes a prompt of 22 tokens, expected at most 8: shorten it"),
    ],
)
def test_an_answer_is_checked_as_an_expression_is(
    tiny_master: Path, colours: np.ndarray, answer: Any, expected: str
) -> None:
    def bad(instruction: str, image_hwc: np.ndarray) -> Any:
        return answer

    with pytest.raises(InputError, match=expected) as error:
        with_refiner(tiny_master, bad).segment(colours, "red")
    assert "as_an_expression_is.<locals>.bad' returned an unusable" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="the expression is empty"):  # checked before
        with_refiner(tiny_master, bad).segment(colours, ["red", " "])


def test_a_refiner_that_fails_is_named(tiny_master: Path, colours: np.ndarray) -> None:
    class Service:
        def __call__(self, instruction: str, image_hwc: np.ndarray, /) -> str:
            raise TimeoutError("no answer\nfor 30 s")

    refiner: Refiner = Service()
    says = r"Service' failed \(TimeoutError: no answer for 30 s\), expected an instruction"
    with pytest.raises(InputError, match=says) as error:
        with_refiner(tiny_master, refiner).segment(colours, "red")
    assert isinstance(error.value.__cause__, TimeoutError)


def test_a_template_reaches_the_model(
    tiny_bundle: Path, reseal: Reseal, colours: np.ndarray
) -> None:
    segmenter = Segmenter.from_bundle(tiny_bundle, provider="cpu", template="the {expression}")
    found = segmenter.segment(colours, "green")
    assert found.instruction == "the green"
    assert found.tokens == ("<s>", "the", "green", "</s>")

    reseal(tiny_bundle, lambda data: data["prompt"].update(template="the {expression}"))
    same = Segmenter.from_bundle(tiny_bundle, provider="cpu")
    np.testing.assert_array_equal(same.segment(colours, "green").score_map, found.score_map)
    (tiny_bundle / "manifest.json").write_text("{}")  # said before anything is opened
    with pytest.raises(InputError, match="template is 'x', expected text with"):
        Segmenter.from_bundle(tiny_bundle, provider="cpu", template="x")
