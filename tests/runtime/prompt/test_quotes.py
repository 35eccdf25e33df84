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


def expect_oracle(text: str, start: int) -> None:
    """Both rules cut as the oracles do, and each piece is text from where it says."""
    found = pieces(text, QuoteRules("toggle", start), SPECIAL + PLAIN)
    assert [(each.text, each.quoted) for each in found] == toggled(text, start - 1), (text, start)
    same = text.translate(str.maketrans("\u201c\u201d'", '"""'))
    for each in found:
        assert each.wrapped == each.quoted
        if each.wrapped:
            assert text[each.start] == each.text[1]
        else:
            assert same[each.start :].startswith(each.text)
    found = pieces(text, QuoteRules("paired", start), SPECIAL + PLAIN)
    assert [(each.text, each.quoted) for each in found] == paired_between(text, start), (
        text,
        start,
    )
    assert not any(each.wrapped for each in found)
    assert all(text[each.start :].startswith(each.text) for each in found)


def test_both_rules() -> None:
    for text in AWKWARD:
        for start in (0, 1, 5, 12):
            expect_oracle(text, start)
    rng = np.random.default_rng(1)
    letters = ["a", " ", '"', "'", "\u201c", "\u201d", "<|im_end|>", "猫"]
    for _ in range(1000):
        expect_oracle("".join(rng.choice(letters, rng.integers(0, 12))), int(rng.integers(0, 6)))


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


def instruction(text: str) -> Instruction:
    return Instruction(text, f"remove {text}", 7)


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def test_ids_of_the_first_rule() -> None:
    """The plain tokenizer's ids up to the end of the image, and the pieces' from there on."""
    encoder = PromptEncoder(rules(max_length=1000), tokenizer_json())
    marks = ids("\u201c") + ids("\u201d")
    assert len(marks) == 2
    (end,), (image,) = ids("<|vision_end|>"), ids("<|image_pad|>")
    for text in AWKWARD:
        rendered = PREFIX + PICTURE + "remove " + text + SUFFIX
        new: list[int] = []
        for part, _ in toggled(rendered, len(PREFIX) - 1):
            one = ids(part)
            new += one[1:-1] if [one[0], one[-1]] == marks else one
        old = ids(rendered)
        wanted = old[: old.index(end)] + new[new.index(end) :]
        at = wanted.index(image)
        wanted[at : at + 1] = [image] * 6
        found = encoder.tokenize([instruction(text)], image_tokens=6)
        assert found.input_ids[0].tolist() == wanted, text


def test_ids_of_the_second_rule() -> None:
    encoder = PromptEncoder(later_rules(max_length=1000), tokenizer_json())
    for text in AWKWARD:
        wanted: list[int] = []
        quoted: list[int] = []
        rendered = PREFIX + " remove " + text + PICTURE + SUFFIX
        for part, inside in paired_between(rendered, len(PREFIX)):
            one = ids(part) * (6 if part == "<|image_pad|>" else 1)
            wanted += one
            quoted += [int(inside)] * len(one)
        found = encoder.tokenize([instruction(text)], image_tokens=6)
        assert found.input_ids[0].tolist() == wanted, text
        assert found.quoted_mask[0].tolist() == quoted, text


@pytest.mark.parametrize("made", [rules, later_rules])
def test_the_expressions_tokens_are_its_characters(made: Callable[..., PromptRules]) -> None:
    encoder = PromptEncoder(made(max_length=1000), tokenizer_json())
    for text in AWKWARD:
        found = encoder.tokenize([instruction(text)], image_tokens=6)
        tokens = np.array(found.tokens[0], dtype=object)
        own = "".join(dict.fromkeys(tokens[found.expression_mask[0][: len(tokens)]]))
        # Tokens may begin with the space before, and bytes of one character show all of it.
        assert set(own.strip()) <= set(text) | {" "}, text
        lost = {"\u201c"} if re.search("(^|>)\u201c", text) else set()
        assert set(text) - set(own) <= lost, text
        assert not (found.expression_mask & ~found.instruction_mask).any()
        assert "<|image_pad|>" not in own
        assert list(tokens).count("<|image_pad|>") == 6


def test_an_image_in_quotes_is_refused() -> None:
    encoder = PromptEncoder(rules(quotes=QuoteRules("toggle", 0)), tokenizer_json())
    assert encoder.encode(["van"], image_tokens=2).input_ids.shape[0] == 1
    odd = PromptEncoder(
        rules(prefix="say '" + PICTURE, quotes=QuoteRules("toggle", 0)), tokenizer_json()
    )
    with pytest.raises(BundleError, match="the prompt has 0 image tokens, expected 1 "):
        odd.encode(["van"], image_tokens=2)
