"""Words of an expression, and the prompt weights made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rism.runtime import InputError, Segmenter
from rism.runtime.expression.head_noun import content_words, head_noun
from rism.runtime.prompt.encoder import PromptEncoder, PromptState
from rism.runtime.prompt.token_weights import prompt_token_weights
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

    def make(text: str) -> PromptState:
        said = encoder.instruct(text)
        found = encoder.tokenize([said], image_tokens=4)
        return PromptState(
            said,
            np.zeros((found.token_mask.shape[1], 3), np.float32),
            found.token_mask[0].astype(np.int64),
            found.instruction_mask[0],
            found.expression_mask[0],
            found.tokens[0],
            found.spans[0],
        )

    return make


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


def test_spans_are_of_the_instruction(prompt: Callable[[str], PromptState]) -> None:
    one = prompt("the green van")
    text = one.instruction.text
    inside = [text[a:b] for a, b in one.spans if a >= 0 and b <= len(text)]
    assert "".join(inside) == text
    assert len(one.spans) == len(one.tokens)


def test_exact_weights(tiny_master: Path) -> None:
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    encoder = segmenter._encoder
    told = [encoder.instruct(text) for text in ("the red", "the red green", "the", "\U0001f436")]
    assert prompt_token_weights("content", states(encoder, told)).tolist() == [
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
    ]
    assert prompt_token_weights("head", states(encoder, told)).tolist() == [
        [0, 0, 0.5, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0.5, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("name", ["content", "head"])
def test_named_is_listed(tiny_master: Path, colours: np.ndarray, name: str) -> None:
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)
    beside = {"content": 1, "head": 0.5}[name]
    named = segmenter.segment(colours, "the blue green", prompt_weights=name)
    listed = segmenter.segment(
        colours, "the blue green", prompt_weights=[0, 0, beside % 1, beside, 1, 0, 0, 0]
    )
    np.testing.assert_array_equal(named.refined, listed.refined)
    whole = segmenter.segment(colours, "the blue green", prompt_weights="expression")
    assert (name == "head") == (not np.array_equal(named.refined, whole.refined))


@pytest.mark.parametrize("name", ["content", "head"])
def test_a_refiner_may_leave_no_expression(tiny_master: Path, name: str) -> None:
    encoder = Segmenter.from_bundle(tiny_master, provider="cpu", threads=1)._encoder
    reworded = encoder.reword(encoder.instruct("the red"), "remove blue")
    with pytest.raises(InputError, match=f"word for word, expected it for the tokens '{name}': u"):
        prompt_token_weights(name, states(encoder, [reworded]))
