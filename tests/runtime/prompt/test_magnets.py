"""Words after an instruction that take attention away, and weigh nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.names import TOKEN_SETS
from rism.runtime.prompt.encoder import Instruction, PromptEncoder
from rism.runtime.transformer_inputs import prompt_token_weights
from tests.runtime.prompt.states import states
from tests.runtime.spies import spied
from tests.runtime.vision_language import PICTURE, later_rules, tokenizer_json


def test_magnets_have_weight_0(segmenter: Segmenter) -> None:
    encoder = segmenter._encoder
    plain = encoder.instruct("the red")
    assert encoder.append(plain, "") is plain
    told = encoder.append(plain, " blue\n the ")
    assert told == Instruction("the red", "remove the red blue the", 7, magnets=9)
    (prompt,) = states(encoder, [told])
    assert prompt.tokens == ("<s>", "remove", "the", "red", "blue", "the", "</s>")
    expected = {
        "all": [1, 1, 1, 1, 0, 0, 1, 1],
        "valid": [1, 1, 1, 1, 0, 0, 1, 0],
        "instruction": [0, 1, 1, 1, 0, 0, 0, 0],
        "expression": [0, 0, 1, 1, 0, 0, 0, 0],
        "content": [0, 0, 0, 1, 0, 0, 0, 0],
        "head": [0, 0, 0.5, 1, 0, 0, 0, 0],
    }
    assert set(expected) == set(TOKEN_SETS)
    for name, weights in expected.items():
        assert prompt_token_weights(name, [prompt]).tolist() == [weights], name
    assert prompt_token_weights(None, [prompt]).tolist() == [expected["all"]]
    given = np.arange(8, dtype=np.float32)
    assert prompt_token_weights(given, [prompt]).tolist() == [[0, 1, 2, 3, 0, 0, 6, 7]]
    assert given.tolist() == list(range(8))


def test_pieces_of_words_and_an_image_after_them() -> None:
    encoder = PromptEncoder(later_rules(quotes=None), tokenizer_json())
    told = encoder.append(encoder.instruct("the van"), "helpful sign")
    (prompt,) = states(encoder, [told], image_tokens=4)
    tokens = np.array(prompt.tokens)
    magnets = prompt.covered((told.length_without_magnets, len(told.text)))
    assert "".join(tokens[magnets]) == " helpful sign"
    assert "".join(tokens[prompt.expression_mask]) == " the van"
    assert not (prompt.instruction_mask & magnets).any()
    assert prompt.tokens.count("<|image_pad|>") == 4
    assert PICTURE.split("<")[0].strip() in "".join(tokens)


def test_magnets_change_nothing_but_what_they_take(
    segmenter: Segmenter, colours: np.ndarray
) -> None:
    """The tiny transformer shares no attention out: a word of weight zero is not there."""
    plain = segmenter.segment(colours, "red")
    for magnets in ("blue green", ["blue", "green"], ("blue", "", "green")):
        result = segmenter.segment(colours, "red", magnets=magnets)
        assert " ".join(result.instruction.split()) == "remove red blue green"
        assert result.tokens == ("<s>", "remove", "red", "blue", "green", "</s>")
        np.testing.assert_array_equal(result.refined, plain.refined)
    counted = segmenter.segment(colours, "red blue green")
    assert not np.array_equal(counted.refined, plain.refined)
    assert segmenter.segment(colours, "red", magnets="").instruction == "remove red"
    assert segmenter.segment(colours, "red", magnets=[]).instruction == "remove red"


def test_templates_and_refiners(tiny_master: Path, colours: np.ndarray) -> None:
    asked: list[str] = []

    def refiner(instruction: str, image_hwc: np.ndarray) -> str:
        del image_hwc
        asked.append(instruction)
        return "remove the blue red"

    template = "the {expression} blue"
    own = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1, template=template)
    assert own.segment(colours, "red", magnets="green").instruction == "the red blue green"
    own = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1, refiner=refiner)
    result = own.segment(colours, "red", magnets="green", prompt_weights="expression")
    assert result.instruction == "remove the blue red green"
    assert asked == ["remove red"]
    np.testing.assert_array_equal(
        result.refined, own.segment(colours, "red", prompt_weights=[0, 0, 0, 0, 1, 0, 0, 0]).refined
    )


def test_a_text_encoder_with_vision(vision_bundle: Path, colours: np.ndarray) -> None:
    own, spies = spied(vision_bundle)
    result = own.segment(colours, "the green van", magnets="the sign")
    assert result.instruction == "remove the green van the sign"
    (fed,) = spies["transformer"].fed
    weighed_out = fed["prompt_weights"][0] == 0
    assert "".join(np.array(result.tokens)[weighed_out]) == " the sign"


@pytest.mark.parametrize(
    ("magnets", "expected"),
    [
        (3, "magnets are '3', expected words such as 'a with to and'"),
        (["a", 3], "magnets are .*, expected words such as"),
        ("a </s> b", "the text of magnets contains '</s>', a control token of this model: take"),
        ("blue " * 9, "makes a prompt of 13 tokens, expected at most 8: use fewer magnets, or sho"),
    ],
)
def test_wrong_magnets(
    segmenter: Segmenter, colours: np.ndarray, magnets: Any, expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as error:
        segmenter.segment(colours, "red", magnets=magnets)
    assert "\n" not in str(error.value)
