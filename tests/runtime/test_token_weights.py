"""Words of an expression, and the prompt weights made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.expression.head_noun import content_words, head_noun
from rism.runtime.prompt.encoder import PromptEncoder, PromptState
from rism.runtime.transformer_inputs import prompt_token_weights
from tests.runtime.prompt.states import states
from tests.runtime.vision_language import later_rules, tokenizer_json


def content(text: str) -> list[str]:
    return [text[a:b] for a, b in content_words(text)]


def head(text: str) -> str | None:
    found = head_noun(text)
    return found and text[slice(*found)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the small red dog", "small red dog"),
        ("The dog on the LEFT", "dog LEFT"),
        ("a man's hat, with the blue t-shirt", "man's hat blue t-shirt"),
        ("the one above it", "one above"),
        ("that", "that"),
        ("la voiture rouge", "la voiture rouge"),
    ],
)
def test_content(text: str, expected: str) -> None:
    assert content(text) == expected.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the small red dog", "dog"),
        ("the dog on the left", "dog"),
        ("Dog LEFT OF the red car", "Dog"),
        ("man left", "man"),
        ("left", "left"),
        ("in the middle the dog", "dog"),
        ("bottom right bowl of soup", "bowl"),
        ("the man's hat", "hat"),
        ("woman in red, standing", "woman"),
        ("the thing nearest to the cat", "thing"),
        ("the", "the"),
        ("\U0001f436", None),
    ],
)
def test_head(text: str, expected: str | None) -> None:
    assert head(text) == expected


@pytest.fixture
def prompt() -> Callable[[str], PromptState]:
    """One prompt whose tokens are pieces of words, its spaces before them."""
    encoder = PromptEncoder(later_rules(quotes=None), tokenizer_json())
    return lambda text: states(encoder, [encoder.instruct(text)], image_tokens=4)[0]


def said(prompt: PromptState, weights: np.ndarray, value: float) -> str:
    """The letters of the tokens with this weight; some spaces are tokens of their own."""
    tokens = (t for t, w in zip(prompt.tokens, weights, strict=True) if w == value)
    return "".join(tokens).replace(" ", "")


def test_weights_by_word(prompt: Callable[[str], PromptState]) -> None:
    one = prompt("the green van on the sign")
    weights = prompt_token_weights("content", [one])[0]
    assert set(weights.tolist()) == {0, 1}
    assert said(one, weights, 1) == "greenvansign"
    weights = prompt_token_weights("head", [one])[0]
    assert set(weights.tolist()) == {0, 0.5, 1}
    assert (said(one, weights, 1), said(one, weights, 0.5)) == ("van", "thegreenonthesign")
    assert weights.dtype == np.float32


def test_exact_weights(tiny_master: Path) -> None:
    encoder = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)._encoder
    told = [encoder.instruct(text) for text in ("the red", "the red green", "the", "\U0001f436")]
    for name, rest in (("content", 0), ("head", 0.5)):
        assert prompt_token_weights(name, states(encoder, told)).tolist() == [
            [0, 0, rest, 1, 0, 0, 0, 0],
            [0, 0, rest, 1 - rest, 1, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0, 0],
        ]


@pytest.mark.parametrize("name", ["expression", "content", "head"])
def test_a_refiner_may_leave_no_expression(tiny_master: Path, name: str) -> None:
    encoder = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)._encoder
    reworded = encoder.reword(encoder.instruct("the red"), "remove blue")
    with pytest.raises(InputError) as error:
        prompt_token_weights(name, states(encoder, [reworded]))
    assert str(error.value) == (
        "the instruction 'remove blue' does not contain 'the red' word for word, expected it for "
        f"the tokens '{name}': use 'instruction', or have the refiner keep it"
    )
