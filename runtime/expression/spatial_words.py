"""Words of place and size in an expression, by lists of English words; no parser."""

import re
from dataclasses import dataclass

# Words after one of these describe another object: "the dog left of the red car". A thing that is
# worn or held is where its owner is, so that only words of size describe the other object.
_BESIDE = (
    r"\b(?:(?:to|on|at|in)\s+the\s+)?(?:(?:far|top|bottom|upper|lower)[\s-]+)?"
    r"(?:left|right|top|bottom|middle|cent(?:er|re))"
    r"(?:[\s-]+(?:hand[\s-]+)?(?:side|half|end|edge|corner|part))?\s+of\b|"
    r"\b(?:next\s+to|close\s+to|in\s+front\s+of|above|below|beneath|under|over|behind|beside|"
    r"between|near|nearest|by|that|which|who)\b"
)
_NEARBY = re.compile(_BESIDE)
RELATION = re.compile(rf"{_BESIDE}|\b(?:with|wearing|holding)\b", re.IGNORECASE)
"""Where words begin that describe another object."""
_OTHER_SIZE = re.compile(r"\b(?:with|wearing|holding|in|on)\b")
_NOT = re.compile(r"\b(?:not|except|excluding|without)\b|n['\u2019]t\b")
# Neither the leftmost nor the largest object is meant.
_ORDINAL = re.compile(
    r"\b(?:second|third|fourth|fifth|sixth|\d+(?:nd|rd|th))\b|"
    r"\b(?:one|two|three|four|five|\d+)\s+(?:\w+\s+)?from\b"
)
# Phrases whose words do not place the object: "of the image", "one of two", "that is", a side of
# the object's own, a direction that it looks in, "right behind", clothes ("a red top").
_NOTHING = re.compile(
    r"\bof\s+(?:the\s+)?(?:picture|image|photo|photograph|pic|screen|frame|scene|view|shot)\b|"
    r"\bof\s+(?:the\s+|all\s+)?(?:two|three|four|five|all|both)\b|"
    r"\b(?:that|which|who)(?:\s+(?:is|are)|['\u2019]s)\b|"
    r"\b(?:left|right)[\s-]+(?:hand(?![\s-]+(?:side|corner))|arm|leg|foot|eye|ear|shoulder)\b|"
    r"\b(?:facing|looking|pointing|turning|leaning|heading)\s+(?:(?:to\s+)?the\s+|to\s+)?"
    r"(?:left|right)\b|"
    r"(?<!\bthe )(?<!\bon )(?<!\bto )(?<!\bfar )(?<!\btop )(?<!\bbottom )\bright\s+"
    r"(?=(?:behind|next|in|beside|above|below|under|by|there|here)\b)|"
    r"\b(?:tank|crop|table|counter)[\s-]+top\b|"
    r"\b(?:in|with|wearing)\s+(?:the\s+)?"
    r"(?:(?!(?:on|at|the|far|very|back|left|right)\b)\w+\s+){1,2}top\b"
)
_WORD = re.compile(r"[^\W\d_]+")
_LEFT = frozenset({"left", "leftmost"})
_RIGHT = frozenset({"right", "rightmost"})
_TOP = frozenset({"top", "topmost", "upper", "uppermost", "highest"})
_BOTTOM = frozenset({"bottom", "bottommost", "lower", "lowest", "lowermost"})
_MIDDLE = frozenset({"middle", "center", "centre", "central"})
PLACES = _LEFT | _RIGHT | _TOP | _BOTTOM | _MIDDLE
"""Words of where an object is in the image."""
_SEVERAL = frozenset(
    {"two", "three", "four", "five", "both", "all", "every", "pair", "couple", "group", "several"}
)
_SMALL = frozenset({"small", "little", "tiny", "smaller", "smallest", "littlest"})
_LARGE = frozenset({"large", "big", "huge", "larger", "bigger", "largest", "biggest"})


@dataclass(frozen=True)
class Cues:
    """Place and size of the object, by the words of the expression.

    Attributes:
        across: -1 left, 1 right, 0 not said.
        down: -1 top, 1 bottom, 0 not said.
        middle: in the middle of the image.
        size: -1 small, 1 large, 0 not said.
        several: more than one object is meant.
    """

    across: int = 0
    down: int = 0
    middle: bool = False
    size: int = 0
    several: bool = False

    @property
    def place(self) -> bool:
        """Whether there are words of place."""
        return bool(self.across or self.down or self.middle)

    @property
    def one(self) -> bool:
        """Whether one object is meant, and words of place or size tell which."""
        return not self.several and bool(self.place or self.size)


def read_cues(expression: str) -> Cues:
    """Read the words of place and size that describe the object itself.

    Ignored are contradictions ("the left one on the right"), negations ("not the left one") and
    ordinals ("second from left").

    >>> read_cues("the small dog at the top left")
    Cues(across=-1, down=-1, middle=False, size=-1, several=False)
    >>> read_cues("the dog left of the big car")
    Cues(across=0, down=0, middle=False, size=0, several=False)
    """
    text = _NOTHING.sub(" ", expression.lower())
    own = _NEARBY.split(_NOT.split(text, maxsplit=1)[0], maxsplit=1)[0]
    if _ORDINAL.search(own):
        return Cues()
    words = frozenset(_WORD.findall(own))
    itself = frozenset(_WORD.findall(_OTHER_SIZE.split(own, maxsplit=1)[0]))

    def sign(found: frozenset[str], low: frozenset[str], high: frozenset[str]) -> int:
        return int(bool(found & high)) - int(bool(found & low))

    return Cues(
        across=sign(words, _LEFT, _RIGHT),
        down=sign(words, _TOP, _BOTTOM),
        middle=bool(words & _MIDDLE),
        size=sign(itself, _SMALL, _LARGE),
        several=bool(itself & _SEVERAL),
    )
