"""Quoted words a character at a time, against the published rules in other words."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from rism.runtime.bundle.prompt_spec import PromptRules, QuoteRules
from rism.runtime.errors import BundleError
from rism.runtime.prompt.encoder import Instruction, PromptEncoder
from rism.runtime.prompt.quotes import Piece, pieces
from tests.runtime.prompt.states import states
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

# Texts, and their pieces by both rules: a piece for each character in brackets, and for each other
# part; neighbours are separated by a broken bar.
CASES = [
    ("the green van", "the green van", "the green van"),
    ("the man's hat", 'the man"[s hat]', "the man's hat"),
    ('sign "STOP" on the "bus"', 'sign "[STOP]" on the "[bus]"', 'sign "[STOP]" on the "[bus]"'),
    ("the \u201c停车\u201d sign", 'the "[停车]" sign', "the \u201c[停车]\u201d sign"),
    ('say "a \u201cb\u201d c" twice', 'say "[a ]"b"[ c]" twice', 'say "[a \u201cb\u201d c]" twice'),
    ('say \u201ca "b" c\u201d twice', 'say "[a ]"b"[ c]" twice', 'say \u201c[a "b" c]\u201d twice'),
    ('the sign "STOP', 'the sign "[STOP]', 'the sign "STOP'),
    ("the sign \u201cSTOP", 'the sign "[STOP]', "the sign \u201cSTOP"),
    ('STOP"', 'STOP"', 'STOP"'),
    ("STOP\u201d and \u201d", 'STOP"[ and ]"', "STOP\u201d and \u201d"),
    ("\u201d\u201c", '"¦"', "\u201d\u201c"),
    ('empty "", \u201c\u201d, \'\'', 'empty "¦", "¦", "¦"', 'empty "¦", \u201c¦\u201d, \'\''),
    ('""', '"¦"', '"¦"'),
    ('"', '"', '"'),
    ("\u201c", '"', ""),
    ('"\U0001f468\u200d"', '"[\U0001f468\u200d]"', '"[\U0001f468\u200d]"'),
    ('a "e\u0301" b', 'a "[e\u0301]" b', 'a "[e\u0301]" b'),
    ('"\'"\'"', '"¦""¦""', '"[\']"\'"'),
    ('wow! "!" !', 'wow! "[!]" !', 'wow! "[!]" !'),
    ("\u201ca\u201d\u201cb\u201d", '"[a]""[b]"', "[a]\u201d\u201c[b]\u201d"),
    ('"<tool_call>" x', '"[<tool_call>]" x', '"¦<tool_call>¦" x'),
    ('x "a<|fake|>b" y', 'x "[a<|fake|>b]" y', 'x "[a<|fake|>b]" y'),
    ('\'tis "it\'s"', '"[tis ]"it"[s]"', '\'tis "[it\'s]"'),
    ('ends in a quote "ok"', 'ends in a quote "[ok]"', 'ends in a quote "[ok]"'),
    ('"ab" <tool_call>\u201cc\u201d', '"[ab]" <tool_call>"[c]"', '"[ab]" ¦<tool_call>[c]\u201d'),
]  # fmt: skip
TEXTS = [text for text, _, _ in CASES]


def expect(found: list[Piece], text: str, shown: str) -> None:
    """The pieces are those shown, and each is in the text where it says."""
    wanted: list[tuple[str, bool]] = []
    for quoted, plain in re.findall(r"\[([^\]]*)\]|([^\[\]\u00a6]+)", shown):
        wanted += [(plain, False)] if plain else [(character, True) for character in quoted]
    own = [(each.text[1:-1] if each.wrapped else each.text, each.quoted) for each in found]
    own = [part for part in own if part[0]]
    assert own == wanted, text
    same = str.maketrans("\u201c\u201d'", '"""')
    for each, (part, _) in zip(found, own, strict=False):
        assert text[each.start :].translate(same).startswith(part.translate(same)), text


def test_both_rules() -> None:
    for text, toggled, paired in CASES:
        found = pieces(text, QuoteRules("toggle", 0), SPECIAL + PLAIN)
        assert all(each.wrapped == each.quoted for each in found)
        expect(found, text, toggled)
        found = pieces(text, QuoteRules("paired", 0), SPECIAL + PLAIN)
        assert not any(each.wrapped for each in found)
        expect(found, text, paired)


def test_quotes_before_the_start_do_not_count() -> None:
    text = 'a "b" "c"'
    for start, shown in ((2, 'a "[b]" "[c]"'), (3, 'a "b"[ ]"c"'), (5, 'a "b" "[c]"'), (9, text)):
        for style in ("toggle", "paired"):
            expect(pieces(text, QuoteRules(style, start)), text, shown)


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
    for text in TEXTS:
        rendered = PREFIX + PICTURE + "remove " + text + SUFFIX
        new: list[int] = []
        for piece in pieces(rendered, QuoteRules("toggle", len(PREFIX)), SPECIAL + PLAIN):
            one = ids(piece.text)
            new += one[1:-1] if [one[0], one[-1]] == marks else one
        old = ids(rendered)
        wanted = old[: old.index(end)] + new[new.index(end) :]
        at = wanted.index(image)
        wanted[at : at + 1] = [image] * 6
        found = encoder.tokenize([instruction(text)], image_tokens=6)
        assert found.input_ids[0].tolist() == wanted, text


def test_ids_of_the_second_rule() -> None:
    encoder = PromptEncoder(later_rules(max_length=1000), tokenizer_json())
    for text in TEXTS:
        wanted: list[int] = []
        quoted: list[int] = []
        rendered = PREFIX + " remove " + text + PICTURE + SUFFIX
        for piece in pieces(rendered, QuoteRules("paired", len(PREFIX)), SPECIAL + PLAIN):
            one = ids(piece.text) * (6 if piece.text == "<|image_pad|>" else 1)
            wanted += one
            quoted += [int(piece.quoted)] * len(one)
        found = encoder.tokenize([instruction(text)], image_tokens=6)
        assert found.input_ids[0].tolist() == wanted, text
        assert found.quoted_mask[0].tolist() == quoted, text


@pytest.mark.parametrize("made", [rules, later_rules])
def test_the_expressions_tokens_are_its_characters(made: Callable[..., PromptRules]) -> None:
    encoder = PromptEncoder(made(max_length=1000), tokenizer_json())
    for text in TEXTS:
        (prompt,) = states(encoder, [instruction(text)], image_tokens=6)
        tokens = np.array(prompt.tokens, dtype=object)
        own = "".join(dict.fromkeys(tokens[prompt.expression_mask[: len(tokens)]]))
        # Tokens may begin with the space before, and bytes of one character show all of it.
        assert set(own.strip()) <= set(text) | {" "}, text
        lost = {"\u201c"} if re.search("(^|>)\u201c", text) else set()
        assert set(text) - set(own) <= lost, text
        assert not (prompt.expression_mask & ~prompt.instruction_mask).any()
        assert "<|image_pad|>" not in own
        assert list(tokens).count("<|image_pad|>") == 6


def test_an_image_in_quotes_is_refused() -> None:
    encoder = PromptEncoder(rules(quotes=QuoteRules("toggle", 0)), tokenizer_json())
    assert encoder.encode(["van"], image_tokens=2).input_ids.shape[0] == 1
    given = rules(prefix="say '" + PICTURE, quotes=QuoteRules("toggle", 0))
    with pytest.raises(BundleError, match="the prompt has 0 image tokens, expected 1 "):
        PromptEncoder(given, tokenizer_json()).encode(["van"], image_tokens=2)
