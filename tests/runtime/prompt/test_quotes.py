"""Quoted words a character at a time, against the published rules in other words."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from rism.runtime.bundle.prompt_spec import PromptRules, QuoteRules
from rism.runtime.errors import BundleError
from rism.runtime.prompt.encoder import Instruction, PromptEncoder
from rism.runtime.prompt.quotes import Piece, pieces
from tests.runtime.vision_language import (
    PICTURE,
    PLAIN,
    PREFIX,
    SPECIAL,
    SUFFIX,
    later_rules,
    rules,
    tokenizer,
    tokenizer_json,
)

AWKWARD = [
    "the green van",
    "the man's hat",
    "the sign \"STOP\" on the \"bus\"",
    "the \u201c停车\u201d sign",
    "\u201c停\u201d",
    '"a"',
    'say "a \u201cb\u201d c" twice',
    'say \u201ca "b" c\u201d twice',
    'the sign "STOP',
    "the sign \u201cSTOP",
    "\u201cSTOP",
    '"STOP',
    'STOP"',
    "STOP\u201d and \u201d",
    "\u201d\u201c",
    'empty "" and \u201c\u201d and \'\'',
    '""',
    '"',
    "\u201c",
    '"   "',
    'the "\U0001f600\U0001f468\u200d\U0001f469" badge',
    'a "e\u0301" b',
    "\"'\"'\"",
    'wow! "!" !',
    "\u201ca\u201d\u201cb\u201d",
    '"<tool_call>" x',
    'x "a<|fake|>b" y',
    "'tis \"it's\"",
    'ends in a quote "ok"',
    '"ab" <tool_call>\u201cc\u201d',
]  # fmt: skip


def toggled(text: str, after: int) -> list[tuple[str, bool]]:
    """The rule of the first generation, a character at a time."""
    for other in "\u201c\u201d'":
        text = text.replace(other, '"')
    found: list[tuple[str, bool]] = []
    inside, kept = False, ""
    for place, character in enumerate(text):
        if character == '"' and place > after:
            kept += character
            if not inside:
                found.append((kept, False))
                kept = ""
            inside = not inside
        elif inside:
            found.append((f"\u201c{character}\u201d", True))
        else:
            kept += character
    return [*found, (kept, False)] if kept else found


def paired(text: str, begin: int) -> list[tuple[str, bool]]:
    """The rule of the second generation, for a text without special tokens."""
    found: list[tuple[str, bool]] = []
    state, kept, inside = "", "", ""
    for place, character in enumerate(text):
        if place < begin:
            kept += character
        elif state == "":
            if character == '"':
                found.append((kept + character, False))
                kept, state = "", '"'
            elif character == "\u201c":
                if kept:
                    found.append((kept + character, False))
                kept, state = "", "\u201d"
            else:
                kept += character
        elif character == state:
            found += [(one, True) for one in inside]
            inside, kept, state = "", character, ""
        else:
            inside += character
    if state:
        rest = inside + kept
        if found and not found[-1][1]:
            found[-1] = (found[-1][0] + rest, False)
        else:
            found.append((rest, False))
    elif kept:
        found.append((kept, False))
    return found


def paired_between(text: str, begin: int) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    at = 0
    for part in re.split("(" + "|".join(map(re.escape, SPECIAL + PLAIN)) + ")", text):
        if part:
            found += paired(part, max(0, begin - at))
        at += len(part)
    return found


@pytest.mark.parametrize("start", [0, 1, 5, 12])
@pytest.mark.parametrize("text", AWKWARD)
def test_the_first_rule(text: str, start: int) -> None:
    found = pieces(text, QuoteRules("toggle", start), SPECIAL + PLAIN)
    assert [(piece.text, piece.quoted) for piece in found] == toggled(text, start - 1)
    assert all(piece.wrapped == piece.quoted for piece in found)
    for piece in found:
        assert piece.wrapped or text[piece.start :][: len(piece.text)].translate(
            str.maketrans("\u201c\u201d'", '"""')
        ) == piece.text  # fmt: skip
        assert not piece.wrapped or text[piece.start] == piece.text[1]


@pytest.mark.parametrize("start", [0, 1, 5, 12])
@pytest.mark.parametrize("text", AWKWARD)
def test_the_second_rule(text: str, start: int) -> None:
    found = pieces(text, QuoteRules("paired", start), SPECIAL + PLAIN)
    assert [(piece.text, piece.quoted) for piece in found] == paired_between(text, start)
    assert not any(piece.wrapped for piece in found)
    for piece in found:
        assert text[piece.start :].startswith(piece.text)


def test_both_rules_on_random_text() -> None:
    rng = np.random.default_rng(1)
    letters = ["a", " ", '"', "'", "\u201c", "\u201d", "<|im_end|>", "猫"]
    for _ in range(3000):
        text = "".join(rng.choice(letters, rng.integers(0, 12)))
        start = int(rng.integers(0, 6))
        for style, oracle in (("toggle", toggled(text, start - 1)),
                              ("paired", paired_between(text, start))):  # fmt: skip
            found = pieces(text, QuoteRules(style, start), SPECIAL)
            assert [(piece.text, piece.quoted) for piece in found] == oracle, (style, text, start)


def test_pieces_know_where_they_were() -> None:
    assert pieces('a "b" c', QuoteRules("paired", 0)) == [
        Piece('a "', 0, quoted=False),
        Piece("b", 3, quoted=True),
        Piece('" c', 4, quoted=False),
    ]
    assert pieces("a 'b", QuoteRules("toggle", 0)) == [
        Piece('a "', 0, quoted=False),
        Piece("\u201cb\u201d", 3, quoted=True, wrapped=True),
    ]


def said(text: str) -> Instruction:
    return Instruction(text, f"remove {text}", 7)


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_of_the_first_rule(text: str) -> None:
    """Old ids up to the end of the picture, and the pieces' from there on."""
    own = tokenizer()

    def ids(part: str) -> list[int]:
        return list(own.encode(part, add_special_tokens=False).ids)

    marks = ids("\u201c") + ids("\u201d")
    assert len(marks) == 2
    rendered = PREFIX + PICTURE + "remove " + text + SUFFIX
    end = own.token_to_id("<|vision_end|>")
    new: list[int] = []
    for part, _ in toggled(rendered, len(PREFIX) - 1):
        one = ids(part)
        new += one[1:-1] if [one[0], one[-1]] == marks else one
    old = ids(rendered)
    wanted = old[: old.index(end)] + new[new.index(end) :]
    at = wanted.index(own.token_to_id("<|image_pad|>"))
    wanted[at : at + 1] = wanted[at : at + 1] * 6
    encoder = PromptEncoder(rules(max_length=1000), tokenizer_json())
    found = encoder.tokenize([said(text)], image_tokens=6)
    assert found.input_ids[0].tolist() == wanted


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_of_the_second_rule(text: str) -> None:
    own = tokenizer()
    rendered = PREFIX + " remove " + text + PICTURE + SUFFIX
    wanted: list[int] = []
    quoted: list[int] = []
    for part, inside in paired_between(rendered, len(PREFIX)):
        one = list(own.encode(part, add_special_tokens=False).ids)
        one *= 6 if part == "<|image_pad|>" else 1
        wanted += one
        quoted += [int(inside)] * len(one)
    found = PromptEncoder(later_rules(max_length=1000), tokenizer_json()).tokenize(
        [said(text)], image_tokens=6
    )
    assert found.input_ids[0].tolist() == wanted
    assert found.quoted_mask[0].tolist() == quoted


@pytest.mark.parametrize("made", [rules, later_rules])
@pytest.mark.parametrize("text", AWKWARD)
def test_the_expression_is_found_again(made: Callable[..., PromptRules], text: str) -> None:
    """The tokens of the expression are its characters, whatever pieces it was cut into."""
    encoder = PromptEncoder(made(max_length=1000), tokenizer_json())
    found = encoder.tokenize([said(text)], image_tokens=6)
    tokens = np.array(found.tokens[0], dtype=object)
    own = "".join(dict.fromkeys(tokens[found.expression_mask[0][: len(tokens)]]))
    # Tokens may begin with the space before, and bytes of one character show all of it.
    assert set(own.strip()) <= set(text) | {" "}
    lost = {"\u201c"} if re.search("(^|>)\u201c", text) else set()
    assert set(text) - set(own) <= lost
    assert not (found.expression_mask & ~found.instruction_mask).any()
    assert "<|image_pad|>" not in own
    assert list(tokens).count("<|image_pad|>") == 6


def test_a_picture_in_quotes_is_refused() -> None:
    encoder = PromptEncoder(rules(quotes=QuoteRules("toggle", 0)), tokenizer_json())
    assert encoder.encode(["van"], image_tokens=2).input_ids.shape[0] == 1
    odd = PromptEncoder(
        rules(prefix="say '" + PICTURE, quotes=QuoteRules("toggle", 0)), tokenizer_json()
    )
    with pytest.raises(BundleError, match="the prompt has 0 image tokens, expected 1 "):
        odd.encode(["van"], image_tokens=2)
