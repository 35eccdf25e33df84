"""Content words and head noun of an expression: word lists and a few rules, no parser.

English only; in another language every word is a content word, and the last one the head.
"""

import re
from typing import TypeAlias

from rism.runtime.expression.spatial_words import PLACES, RELATION

Span: TypeAlias = tuple[int, int]

_FUNCTION_WORDS = """
a an the this that these those some any each every
i you he she it we they me him her us them my your his its our their
who whom whose which what there here
and or but nor so if then than as
of in on at to from by with for into onto off about
am is are was were be been being has have had having do does did
can could will would shall should may might must
not no very just only also too
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that do not describe an object. Words of place ("above") and size are not among them."""

# Words that a sentence starts with before it comes to its object: "can you find ...".
_LEADING = """
i we you me us do does am is are was there where what which one who can could would should will
please help try need want like look looking search searching find show see spot point select
segment mark give pick get locate identify detect highlight remove erase delete take cut away
out up for at to
"""
_LEAD = frozenset(_LEADING.split())
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
# A noun phrase ends before one of these, or before a relation to another object.
_END = re.compile(
    r"\b(?:in|on|at|of|from|to|into|onto|inside|against|around|across|along|through|for|"
    r"and|or|but|is|are|was|has|have|whose|where|standing|sitting|lying|facing|looking|riding|"
    r"eating|carrying)\b|[,;:.!?()/]",
    re.IGNORECASE,
)


def content_words(expression: str) -> list[Span]:
    """Find the words that are not stop words.

    Returns:
        Start and end of each in characters; of every word if all are stop words.

    >>> [expression[a:b] for a, b in content_words(expression := "the dog on the left")]
    ['dog', 'left']
    """
    words = _words(expression, 0, len(expression))
    content = [span for span in words if _lower(expression, span) not in STOP_WORDS]
    return content or words


def head_noun(expression: str) -> Span | None:
    """Find the word that names the object: the last of the first noun phrase.

    Words of place and stop words at its end do not count ("man left"), unless it has no others.

    Returns:
        Start and end in characters; None if there is no word.

    >>> [text[a:b] for text in ("small red dog left of the car",) for a, b in [head_noun(text)]]
    ['dog']
    """
    words = noun_phrase(expression)
    named = [span for span in words if _lower(expression, span) not in PLACES | STOP_WORDS]
    words = named or words
    return words[-1] if words else None


def noun_phrase(expression: str) -> list[Span]:
    """Find the words of the first noun phrase, which describe the object itself.

    It starts after what asks for it ("where is"), and ends before the first preposition, relation,
    auxiliary or comma; if that leaves no word, the whole expression is taken.

    Returns:
        Start and end of each word in characters.

    >>> text = "small red dog left of the car"
    >>> [text[a:b] for a, b in noun_phrase(text)]
    ['small', 'red', 'dog']
    """
    every = _words(expression, 0, len(expression))
    asked = (span[0] for span in every if _lower(expression, span) not in _LEAD)
    start = next(asked, 0)
    rules = (_END, RELATION)
    ends = [found.start() for rule in rules if (found := rule.search(expression, start))]
    return _words(expression, start, min(ends, default=len(expression))) or every


def _words(text: str, first: int, end: int) -> list[Span]:
    return [found.span() for found in _WORD.finditer(text, first, end)]


def _lower(text: str, span: Span) -> str:
    return text[span[0] : span[1]].lower()
