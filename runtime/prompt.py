"""From an expression to token ids, with the bundle's own tokenizer and template."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rism.runtime.errors import BundleError, InputError, one_line
from rism.runtime.manifest import PromptRules

__all__ = [
    "EncodedPrompts",
    "PromptEncoder",
    "PromptState",
    "PromptWeights",
    "clean_expression",
    "weigh",
]

MAX_EXPRESSION_CHARACTERS = 4096
WEIGHTINGS = ("all", "text", "expression")


PromptWeights: TypeAlias = str | npt.NDArray[np.floating[Any]] | Sequence[float] | None


@dataclass(frozen=True, eq=False)
class PromptState:
    """One encoded expression, reusable on any picture.

    Attributes:
        embeds: (N_p, E) float32.
        attention_mask: (N_p,) int64, one where there is a token.
        expression_mask: (N_p,) bool, true on the expression's own tokens.
        tokens: text of each token, without padding.
    """

    embeds: npt.NDArray[np.float32]
    attention_mask: npt.NDArray[np.int64]
    expression_mask: npt.NDArray[np.bool_]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as the text encoder takes them.

    Attributes:
        input_ids: (B, N_p) int64, padded on the right.
        attention_mask: (B, N_p) int64, one where there is a token.
        expression_mask: (B, N_p) bool, true on the tokens that carry the expression itself.
        tokens: for each prompt the text of each of its tokens, without padding.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    expression_mask: npt.NDArray[np.bool_]
    tokens: tuple[tuple[str, ...], ...]


class PromptEncoder:
    """Renders and tokenises expressions (docs/bundle.md, step 4)."""

    def __init__(self, rules: PromptRules, tokenizer_json: bytes) -> None:
        """Load the tokenizer.

        Args:
            rules: template, prefix, suffix, length and padding.
            tokenizer_json: bytes of a Hugging Face `tokenizers` file.

        Raises:
            BundleError: the tokenizer file is not one.
        """
        self.rules = rules
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(
                f"'{rules.tokenizer}' is not a tokenizers file ({one_line(error, limit=120)}): "
                "export the bundle again"
            ) from None
        # The file may carry its own truncation, which would cut expressions silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = [
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if token.content.strip() and (token.special or token.content.startswith("<"))
        ]

    def encode(self, expressions: Sequence[str]) -> EncodedPrompts:
        """Tokenise expressions, each inside the template, padded to `max_length`.

        Raises:
            InputError: an expression is empty, has control characters or the tokenizer's
                control tokens in it, or is too long.
        """
        length = self.rules.max_length
        ids = np.full((len(expressions), length), self.rules.pad_id, np.int64)
        mask = np.zeros((len(expressions), length), np.int64)
        inside = np.zeros((len(expressions), length), np.bool_)
        tokens: list[tuple[str, ...]] = []
        for row, expression in enumerate(expressions):
            cleaned = clean_expression(expression)
            self._refuse_control_tokens(cleaned)
            head, tail = self.rules.template.split("{expression}")
            start = len(self.rules.prefix) + len(head)
            rendered = self.rules.prefix + head + cleaned + tail + self.rules.suffix
            encoding = self._tokenizer.encode(rendered, add_special_tokens=False)
            count = len(encoding.ids)
            if count > length:
                raise InputError(
                    f"the expression '{one_line(cleaned, limit=40)}' makes a prompt of {count} "
                    f"tokens, expected at most {length}: shorten it"
                )
            ids[row, :count] = encoding.ids
            mask[row, :count] = 1
            stop = start + len(cleaned)
            inside[row, :count] = [a < stop and b > start for a, b in encoding.offsets]
            tokens.append(tuple(rendered[a:b] for a, b in encoding.offsets))
        return EncodedPrompts(ids, mask, inside, tuple(tokens))

    def _refuse_control_tokens(self, expression: str) -> None:
        """Keep an expression from closing the template's turn and opening another."""
        normalizer = self._tokenizer.normalizer
        seen = [expression]
        if normalizer is not None:
            # A normaliser can turn look-alikes (full-width letters) into the real token.
            seen.append(normalizer.normalize_str(expression))
        for token in self._control:
            if any(token in text for text in seen):
                raise InputError(
                    f"the expression contains '{one_line(token)}', a control token of this "
                    "model: take it out"
                )


def clean_expression(expression: str) -> str:
    """Check an expression and collapse its white space; otherwise it is kept as it is.

    Raises:
        InputError: not text, empty, too many characters, or control characters in it.
    """
    if not isinstance(expression, str):
        raise InputError(f"an expression is text, not {type(expression).__name__}")
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise InputError(
            f"the expression has {len(expression)} characters, expected at most "
            f"{MAX_EXPRESSION_CHARACTERS}: shorten it"
        )
    cleaned = " ".join(expression.split())
    if not cleaned:
        raise InputError("the expression is empty, expected words such as 'the red cup'")
    for character in cleaned:
        # Cc are control characters, Cs lone halves of surrogate pairs; Cf stays, emoji use it.
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InputError(
                f"the expression contains the control character U+{ord(character):04X}: take it out"
            )
    return cleaned


def weigh(weights: PromptWeights, prompts: Sequence[PromptState]) -> npt.NDArray[np.float32]:
    """Make the prompt weights w of a_l = A_vp w.

    Args:
        weights: None or "all" for the paper's ones, "text" for ones without the padding,
            "expression" for the expression's own tokens, or numbers (N_p,) or (B, N_p).
        prompts: the B prompts they are for.

    Returns:
        (B, N_p) float32.

    Raises:
        InputError: none of those, or not finite.
    """
    shape = (len(prompts), prompts[0].attention_mask.size)
    if weights is None or (isinstance(weights, str) and weights == "all"):
        return np.ones(shape, np.float32)
    if isinstance(weights, str):
        if weights not in WEIGHTINGS:
            raise InputError(
                f"prompt_weights is '{one_line(weights)}', expected one of "
                f"{', '.join(WEIGHTINGS)} or an array"
            )
        masks = [p.attention_mask if weights == "text" else p.expression_mask for p in prompts]
        return np.stack(masks).astype(np.float32)
    try:
        array = np.asarray(weights, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(
            f"prompt_weights are not an array of numbers, expected shape {shape[1:]}"
        ) from None
    if array.shape not in (shape, shape[1:]) or not np.isfinite(array).all():
        raise InputError(
            f"prompt_weights have shape {array.shape}, expected {shape[1:]} or {shape}, finite"
        )
    return np.broadcast_to(array, shape)
