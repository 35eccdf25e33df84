"""What a demonstrator model can be asked: nouns that it was trained on, in drawn scenes."""

from dataclasses import dataclass

import numpy as np

from rism.runtime.arrays import Float32, Uint8
from rism.runtime.errors import one_line
from rism.runtime.expression.head_noun import noun_phrase

_FLAT_LEVELS = 4


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
        """Say that neither an expression nor its instruction names a known object; else None."""
        texts = expression, instruction
        words = {text[a:b].lower() for text in texts for a, b in noun_phrase(text)}
        if not words.isdisjoint(self.nouns):
            return None
        return (
            f"the demonstrator knows nothing that '{one_line(expression, limit=60)}' names, only "
            f"{', '.join(self.nouns)}"
        )

    def unlike(self, found: float) -> str | None:
        """Say that an image of this `flatness` is no drawing; None where it may be one."""
        if found >= self.flatness:
            return None
        return (
            f"the image is unlike the drawn scenes that the demonstrator was made for ({found:.0%} "
            f"of it is flat, expected at least {self.flatness:.0%})"
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
