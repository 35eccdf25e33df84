"""What an expression says of place and size, by lists of English words; no parser."""

import re
from dataclasses import dataclass

__all__ = ["PLACES", "RELATION", "Cues", "read_cues"]

# What follows one of these speaks of another object: "the dog left of the red car".
RELATION = re.compile(
    r"\b(?:(?:to|on|at)\s+the\s+)?(?:left|right|top|bottom)\s+of\b|"
    r"\b(?:next\s+to|close\s+to|in\s+front\s+of|above|below|beneath|under|over|behind|beside|"
    r"between|near|nearest|by|with|wearing|holding|that|which|who)\b",
    re.IGNORECASE,
)
_THE_PICTURE = re.compile(
    r"\bof\s+(?:the\s+)?(?:picture|image|photo|photograph|pic|screen|frame)\b"
)
_WORD = re.compile(r"[a-z]+")
_LEFT = frozenset({"left", "leftmost"})
_RIGHT = frozenset({"right", "rightmost"})
_TOP = frozenset({"top", "topmost", "upper", "uppermost"})
_BOTTOM = frozenset({"bottom", "bottommost", "lower", "lowest", "lowermost"})
_MIDDLE = frozenset({"middle", "center", "centre", "central"})
PLACES = _LEFT | _RIGHT | _TOP | _BOTTOM | _MIDDLE
"""Words of where an object is in the picture."""
_SMALL = frozenset({"small", "little", "tiny", "smaller", "smallest", "littlest"})
_LARGE = frozenset({"large", "big", "huge", "larger", "bigger", "largest", "biggest"})


@dataclass(frozen=True)
class Cues:
    """Where and how large the object is said to be.

    Attributes:
        across: -1 left, 1 right, 0 not said.
        down: -1 top, 1 bottom, 0 not said.
        middle: in the middle of the picture.
        size: -1 small, 1 large, 0 not said.
    """

    across: int = 0
    down: int = 0
    middle: bool = False
    size: int = 0

    @property
    def place(self) -> bool:
        """Something is said of where the object is."""
        return bool(self.across or self.down or self.middle)


def read_cues(expression: str) -> Cues:
    """Read the words of place and size that speak of the object itself.

    Contradictions ("the left one on the right") say nothing.

    >>> read_cues("the small dog at the top left")
    Cues(across=-1, down=-1, middle=False, size=-1)
    >>> read_cues("the dog left of the big car")
    Cues(across=0, down=0, middle=False, size=0)
    """
    text = _THE_PICTURE.sub(" ", expression.lower())
    own = RELATION.split(text, maxsplit=1)[0]
    words = frozenset(_WORD.findall(own))

    def sign(low: frozenset[str], high: frozenset[str]) -> int:
        return int(bool(words & high)) - int(bool(words & low))

    across, down = sign(_LEFT, _RIGHT), sign(_TOP, _BOTTOM)
    middle = bool(words & _MIDDLE)
    return Cues(across, down, middle, sign(_SMALL, _LARGE))
