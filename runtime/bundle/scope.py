"""What a demonstrator model can be asked: nouns that it was trained on."""

from dataclasses import dataclass
from difflib import get_close_matches

from rism.runtime.errors import one_line
from rism.runtime.expression.head_noun import noun_phrase

_ALIKE = 0.85  # of a word and a known one: about a letter in seven may be wrong
_LISTED = 30  # nouns in a message


@dataclass(frozen=True)
class Scope:
    """The limits of a demonstrator; models for photographs have none.

    Attributes:
        nouns: lower case; the words for objects that it was trained on.
    """

    nouns: tuple[str, ...]

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


def is_noun(value: object) -> bool:
    """Whether it is a word in lower case, which may have hyphens."""
    return (
        isinstance(value, str)
        and value == value.lower()
        and all(part.isalpha() for part in value.split("-"))
    )
