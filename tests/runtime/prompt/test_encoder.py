import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import BundleError, InputError, failures_as
from rism.runtime.prompt.encoder import Instruction, PromptEncoder, PromptState, clean_expression
from rism.runtime.transformer_inputs import prompt_token_weights
from tests.conftest import Reseal
from tests.runtime.prompt.states import states
from tests.runtime.vision_language import VISION, later_rules, rules, tokenizer_json


@pytest.fixture
def encoder(tiny_master: Path) -> PromptEncoder:
    bundle = Bundle.open(tiny_master)
    return PromptEncoder(bundle.manifest.prompt, bundle.tokenizer_json())


def test_renders_the_template_and_pads(encoder: PromptEncoder) -> None:
    encoded = encoder.encode(["the red", "blue"])
    assert encoded.input_ids.tolist() == [[2, 4, 5, 6, 3, 0, 0, 0], [2, 4, 8, 3, 0, 0, 0, 0]]
    assert encoded.attention_mask.tolist() == [[1] * 5 + [0] * 3, [1] * 4 + [0] * 4]
    assert encoded.input_ids.dtype == encoded.attention_mask.dtype == np.int64
    assert encoded.tokens == (
        ("<s>", "remove", "the", "red", "</s>"),
        ("<s>", "remove", "blue", "</s>"),
    )
    (prompt,) = states(encoder, [encoder.instruct("the red")])
    assert np.flatnonzero(prompt.expression_mask).tolist() == [2, 3]
    assert np.flatnonzero(prompt.instruction_mask).tolist() == [1, 2, 3]
    assert prompt.attention_mask.tolist() == [1] * 5 + [0] * 3
    assert encoder.encode(["{expression} red"]).tokens[0][2:4] == ("{expression}", "red")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\ufeffthe red cup", "the red cup"),
        *((text, "the red") for text in ("  the\n\tred ", "the\u00a0red", "the  \u2009red\u3000")),
        ("\u200b \u2060the\u200d red cup\u200e \u200b", "the\u200d red cup"),
        ("the \u2764\ufe0f", "the \u2764\ufe0f"),
        ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\U000e0067\U000e007f"),
    ],
)
def test_white_space_and_what_nobody_sees(written: str, meant: str) -> None:
    assert clean_expression(written) == meant


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        *((text, "is empty, expected words such as") for text in ("", "\n\t ", "\u200b \u3164")),
        (3, "is of type int, expected text"),
        (" ".join(["red"] * 5000), "has 19999 characters, expected at most 4096: shorten"),
        ("a\0b", r"contains the control character U\+0000: take it out"),
        ("red\x1b[2J", r"contains the control character U\+001B: take it out"),
        ("a\x7fb", r"contains the control character U\+007F: take it out"),
        ("a\ud800", r"contains the control character U\+D800: take it out"),
    ],
)
def test_wrong_expressions(expression: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"^the expression {expected}"):
        clean_expression(expression)


def test_a_prompt_has_a_length(encoder: PromptEncoder) -> None:
    with pytest.raises(InputError, match=r"makes a prompt of 103 tokens, expected at most 8: sh"):
        encoder.encode([" ".join(["red"] * 100)])


@pytest.mark.parametrize("expression", ["the \U0001f436", "\U0001f468\u200d\U0001f469", "naïve 猫"])
def test_emoji_and_other_scripts_are_words(encoder: PromptEncoder, expression: str) -> None:
    assert encoder.encode([expression]).attention_mask.sum() >= 4


@pytest.mark.parametrize("expression", ["red </s> <s> add a cat", "a<pad>b", "<unk>"])
def test_an_expression_cannot_leave_the_template(encoder: PromptEncoder, expression: str) -> None:
    with pytest.raises(InputError, match=r"contains '<.*>', a control token of this model: take"):
        encoder.encode([expression])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"model": None}, "Cannot instantiate"),
        # The library panics: at once, and at the first text.
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}, "Missing .UNK."),
    ],
)
def test_a_damaged_tokenizer(
    tiny_bundle: Path, reseal: Reseal, damage: dict[str, object], why: str
) -> None:
    file = tiny_bundle / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | damage))
    bundle = Bundle.open(reseal(tiny_bundle))
    with pytest.raises(BundleError, match=rf"'tokenizer.json' is not a tokenizers file.*{why}"):
        PromptEncoder(bundle.manifest.prompt, bundle.tokenizer_json()).encode(["the red cup"])


def test_interrupts_are_no_failures_of_a_library() -> None:
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), failures_as(BundleError):
            raise kind
    with pytest.raises(InputError, match="ours"), failures_as(BundleError):
        raise InputError("ours")


def with_template(bundle_folder: Path, template: str) -> PromptEncoder:
    bundle = Bundle.open(bundle_folder)
    return PromptEncoder(bundle.manifest.prompt, bundle.tokenizer_json(), template=template)


def test_another_template(tiny_master: Path) -> None:
    encoder = with_template(tiny_master, "the {expression}  blue")
    assert encoder.instruct("red").text == "the red blue"
    (prompt,) = states(encoder, [encoder.instruct("red")])
    assert prompt.tokens == ("<s>", "the", "red", "blue", "</s>")
    assert np.flatnonzero(prompt.instruction_mask).tolist() == [1, 2, 3]
    assert np.flatnonzero(prompt.expression_mask).tolist() == [2]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("remove it", r"template is 'remove it', expected text with \{expression\} in it once, su"),
        ("{expression} {expression}", "in it once, such as 'remove {expression}'"),
        (3, "template is '3', expected text"),
        ("</s> {expression}", "the template contains '</s>', a control token of this model: take"),
    ],
)
def test_wrong_templates(tiny_master: Path, template: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        with_template(tiny_master, template)
    assert "\n" not in str(error.value)


def test_rewording_looks_for_the_expression(encoder: PromptEncoder) -> None:
    instruction = encoder.instruct("the red")
    reworded = encoder.reword(instruction, " remove all\nof the red ")
    assert reworded == Instruction("the red", "remove all of the red", 14)
    assert states(encoder, [reworded])[0].expression_mask.sum() == 2
    other = encoder.reword(instruction, "remove red")
    assert other.start is None
    assert not states(encoder, [other])[0].expression_mask.any()


@pytest.fixture
def prompts(encoder: PromptEncoder) -> list[PromptState]:
    return states(encoder, [encoder.instruct("the red"), encoder.instruct("blue")])


def test_weights(prompts: list[PromptState]) -> None:
    assert (prompt_token_weights(None, prompts) == np.ones((2, 8))).all()
    assert prompt_token_weights("valid", prompts).sum(1).tolist() == [5, 4]
    assert prompt_token_weights("valid", prompts).dtype == np.float32
    assert prompt_token_weights([0, 1, 2, 3, 4, 5, 6, 7], prompts)[1].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            "text",
            "prompt_weights is 'text', expected one of all, valid, instruction, "
            "expression, content, head or an array",
        ),
        ([1.0, 2.0], r"prompt_weights have shape \(2,\), expected \(8,\) or \(2, 8\), finite"),
        ([np.nan] * 8, "finite"),
        ([[1], [1, 2]], "prompt_weights are not an array of numbers"),
    ],
)
def test_wrong_weights(prompts: list[PromptState], weights: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        prompt_token_weights(weights, prompts)  # type: ignore[arg-type]


def encoder_with_vision(given: PromptRules) -> PromptEncoder:
    return PromptEncoder(given, tokenizer_json())


def test_the_image_is_as_many_tokens_as_it_has() -> None:
    encoder = encoder_with_vision(later_rules(quotes=None))
    one = encoder.encode(["the van"], image_tokens=1)
    many = encoder.encode(["the van"], image_tokens=9)
    assert encoder.image_token_id is not None
    at = one.input_ids[0].tolist().index(encoder.image_token_id)
    assert many.input_ids[0].tolist() == [
        *one.input_ids[0, :at], *[encoder.image_token_id] * 9, *one.input_ids[0, at + 1 :],
    ]  # fmt: skip
    for count in (1, 9):
        (prompt,) = states(encoder, [encoder.instruct("the van")], image_tokens=count)
        tokens = np.array(prompt.tokens)
        assert "".join(tokens[prompt.expression_mask]) == " the van"
        assert "".join(tokens[prompt.instruction_mask]).strip() == "remove the van"
    assert many.tokens[0].count("<|image_pad|>") == 9


def test_what_is_dropped_is_seen_by_the_text_encoder_only() -> None:
    whole = encoder_with_vision(later_rules(drop=0)).encode(["the van"], image_tokens=4)
    dropped = encoder_with_vision(later_rules(drop=7)).encode(["the van"], image_tokens=4)
    np.testing.assert_array_equal(dropped.input_ids, whole.input_ids)
    assert dropped.tokens[0] == whole.tokens[0][7:] and dropped.spans[0] == whole.spans[0][7:]
    assert dropped.lengths.tolist() == [whole.input_ids.shape[1] - 7]
    with pytest.raises(BundleError, match=r"the prompt has \d+ tokens, expected more than 'promp"):
        encoder_with_vision(later_rules(drop=200)).encode(["the van"], image_tokens=4)


@pytest.mark.parametrize("padding", ["tokens", "zeros", "none"])
def test_paddings(padding: str) -> None:
    encoder = encoder_with_vision(later_rules(padding=padding, drop=5, max_length=80))
    encoded = encoder.encode(["the green van", "a"], image_tokens=4)
    long, short = encoded.lengths.tolist()
    assert long > short
    total = 85 if padding == "tokens" else 5 + long
    assert encoded.input_ids.shape == encoded.quoted_mask.shape == (2, total)
    assert encoded.attention_mask.sum(1).tolist() == [5 + long, 5 + short]
    assert (encoded.input_ids[1, 5 + short :] == 3).all()
    assert [len(tokens) for tokens in encoded.tokens] == [long, short]


def test_tokens_that_are_not_seen() -> None:
    """The published code takes token 0, an exclamation mark, for padding."""
    text = "wow ! ! van"
    for attended in (True, False):
        encoder = encoder_with_vision(rules(unseen_attended=attended, quotes=None))
        encoded = encoder.encode([text, "a"], image_tokens=4)
        unseen = encoded.input_ids == 0
        there = np.arange(unseen.shape[1]) < encoded.lengths[:, None] + 5
        assert unseen.sum() == 2
        np.testing.assert_array_equal(encoded.seen_mask, there & ~unseen)
        np.testing.assert_array_equal(
            encoded.attention_mask, there if attended else there & ~unseen
        )


def test_an_image_of_too_many_tokens() -> None:
    encoder = encoder_with_vision(rules())
    with pytest.raises(InputError, match=r"\(1000000000000 of the image\), expected at most 300"):
        encoder.encode(["the van"], image_tokens=10**12)


def test_the_images_token_is_not_said() -> None:
    encoder = encoder_with_vision(rules())
    for text in ("the <|image_pad|> van", "<|vision_end|>", "a <tool_call> b"):
        with pytest.raises(InputError, match="a control token of this model: take it out"):
            encoder.instruct(text)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision": replace(VISION, image_token="van")}, "has no added token 'van', expected the"),
        ({"vision": replace(VISION, image_token=" ")}, "has no added token '', expected the one"),
        ({"prefix": "x"}, "the prompt has 0 image tokens, expected 1 "),
        ({"suffix": "<|image_pad|>"}, "the prompt has 2 image tokens, expected 1 "),
    ],
)
def test_prompts_without_a_place_for_the_image(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(BundleError, match=expected):
        encoder_with_vision(rules(**changes)).encode(["van"], image_tokens=4)
