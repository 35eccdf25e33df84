"""Quoted words, tokenised one character at a time: the pieces in which a prompt is tokenised.

Image editors that write quoted text are trained with prompts in which the tokenizer gets quoted
words as single characters. Two such rules are published; where they are odd, so is this
(docs/bundle.md, step 4).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rism.runtime.bundle.prompt_spec import QuoteRules

OPENING, CLOSING = "\u201c", "\u201d"  # the Chinese quotes
_TOGGLES = str.maketrans({"'": '"', OPENING: '"', CLOSING: '"'})
_PAIRS = {'"': '"', OPENING: CLOSING}


@dataclass(frozen=True)
class Piece:
    """A part of a rendered prompt, from `start` on, that is tokenised separately.

    A `quoted` one is a character in quotes; in a `wrapped` one the text has quotes around it.
    """

    text: str
    start: int
    quoted: bool
    wrapped: bool = False


def pieces(rendered: str, rules: QuoteRules, special: Sequence[str] = ()) -> list[Piece]:
    """Split a rendered prompt, with one image token in it, into pieces.

    The style "paired" looks for quotes between the tokenizer's `special` tokens.
    """
    if rules.style == "toggle":
        return list(_toggled(rendered.translate(_TOGGLES), rules.start))
    cut: list[Piece] = []
    at = 0
    for part in _parts(rendered, tuple(special)):
        cut += _paired(part, at, max(0, rules.start - at))
        at += len(part)
    return cut


def _toggled(text: str, first: int) -> Iterator[Piece]:
    """Split by quotes that open and close in turn from `first` on, whatever their kind.

    Quotes belong to the text outside; a text that is not closed is quoted to the end.
    """
    begin, opened = 0, text.find('"', first)
    while opened >= 0:
        yield Piece(text[begin : opened + 1], begin, quoted=False)
        closed = text.find('"', opened + 1)
        end = len(text) if closed < 0 else closed
        for at in range(opened + 1, end):
            yield Piece(OPENING + text[at] + CLOSING, at, quoted=True, wrapped=True)
        if closed < 0:
            return
        begin, opened = closed, text.find('"', closed + 1)
    if text:
        yield Piece(text[begin:], begin, quoted=False)


def _paired(part: str, offset: int, first: int) -> list[Piece]:
    """Split by quotes that are closed by their own kind; they belong to the text outside.

    `part` is between two special tokens, begins at `offset` in the rendered prompt, and in it
    quotes count from `first` on.
    """
    cut: list[Piece] = []
    begin, opened = 0, _find_opening(part, first)
    while opened >= 0:
        # The published rule leaves out a Chinese quote at the start of a part.
        if part[opened] != OPENING or begin < opened:
            cut.append(Piece(part[begin : opened + 1], offset + begin, quoted=False))
        closed = part.find(_PAIRS[part[opened]], opened + 1)
        if closed < 0:
            # Never closed: not a quote, and one piece with the text before it.
            start = cut.pop().start - offset if cut else opened + 1
            return [*cut, Piece(part[start:], offset + start, quoted=False)]
        cut += [Piece(part[at], offset + at, quoted=True) for at in range(opened + 1, closed)]
        begin, opened = closed, _find_opening(part, closed + 1)
    if begin < len(part):
        cut.append(Piece(part[begin:], offset + begin, quoted=False))
    return cut


def _find_opening(part: str, first: int) -> int:
    found = [at for at in (part.find(quote, first) for quote in _PAIRS) if at >= 0]
    return min(found, default=-1)


def _parts(text: str, special: tuple[str, ...]) -> list[str]:
    pattern = _pattern(special)
    return [text] if pattern is None else [part for part in pattern.split(text) if part]


@lru_cache(maxsize=4)
def _pattern(special: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted({token for token in special if token}, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
