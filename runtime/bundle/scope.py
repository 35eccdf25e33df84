"""What a demonstrator model can be asked: nouns that it was trained on, in drawn scenes."""

from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from rism.runtime.arrays import Float32, Uint8
from rism.runtime.errors import one_line
from rism.runtime.expression.head_noun import noun_phrase

_FLAT_LEVELS = 4
_ALIKE = 0.85  # of a word and a known one: about a letter in seven may be wrong
_LISTED = 30  # nouns in a message


@dataclass(frozen=True)
class Scope:
    """The limits of a demonstrator; models for photographs have none.

    Attributes:
        nouns: lower case; the words for objects that it was trained on.
        flatness: the least `flatness` of an image that it was made for.
    """

    nouns: tuple[str, ...]
    flatness: float

    def unknown(self, expression: str, instruction: str) -> str | None:
        """Say that neither an expression nor its instruction names a known object; else None.

        A word of five letters or more may be misspelt.
        """
        texts = expression, instruction
        words = {text[a:b].lower() for text in texts for a, b in noun_phrase(text)}
        if not words.isdisjoint(self.nouns):
            return None
        if any(get_close_matches(word, self.nouns, 1, _ALIKE) for word in words if len(word) > 4):
            return None
        listed = self.nouns[:_LISTED]
        more = len(self.nouns) - len(listed)
        return (
            f"the demonstrator knows nothing that '{one_line(expression, limit=60)}' names, only "
            f"{', '.join(listed)}{f' and {more} more' if more else ''}"
        )

    def unlike(self, found: float) -> str | None:
        """Say that an image of this `flatness` is no drawing; None where it may be one."""
        if found >= self.flatness:
            return None
        return (
            f"the image is unlike the drawn scenes that the demonstrator was made for ({found:.0%} "
            f"of it is flat, expected at least {self.flatness:.0%})"
        )


def is_noun(value: object) -> bool:
    """Whether it is a word in lower case, which may have hyphens."""
    return (
        isinstance(value, str)
        and value == value.lower()
        and all(part.isalpha() for part in value.split("-"))
    )


def flatness(image_hwc: Uint8 | Float32) -> float:
    """Share of pixels that differ from the next one in the row and in the column by at most 4.

    Drawn scenes have plain grounds and plain things; in a photograph light, grain and texture
    change from pixel to pixel.

    The image is (H, W, 3), 0 to 255, at the model's size; without two rows and columns it is flat.
    """
    levels = np.asarray(image_hwc, np.float32)
    across = np.abs(np.diff(levels, axis=1)).max(axis=2)[:-1]
    down = np.abs(np.diff(levels, axis=0)).max(axis=2)[:, :-1]
    flat = np.maximum(across, down) <= _FLAT_LEVELS
    return float(flat.mean()) if flat.size else 1.0
