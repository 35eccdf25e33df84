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
    "Instruction",
    "PromptEncoder",
    "PromptState",
    "PromptWeights",
    "check_template",
    "clean_expression",
    "weigh",
]

MAX_EXPRESSION_CHARACTERS = 4096
WEIGHTINGS = ("all", "valid", "instruction", "expression")
_MARK = "{expression}"

PromptWeights: TypeAlias = str | npt.NDArray[np.floating[Any]] | Sequence[float] | None


@dataclass(frozen=True)
class Instruction:
    """What the model is told for one expression.

    Attributes:
        expression: as it was asked, white space collapsed.
        text: the template with the expression in it, or what a refiner made of that.
        start: where in `text` the expression begins; None where it is not there word for word.
    """

    expression: str
    text: str
    start: int | None


@dataclass(frozen=True, eq=False)
class PromptState:
    """One encoded instruction, reusable on any picture.

    Attributes:
        instruction: what the model is told.
        embeds: (N_p, E) float32.
        attention_mask: (N_p,) int64, one where there is a token.
        instruction_mask: (N_p,) bool, true on the tokens of the instruction.
        expression_mask: (N_p,) bool, true on the expression's own tokens.
        tokens: text of each token, without padding.
    """

    instruction: Instruction
    embeds: npt.NDArray[np.float32]
    attention_mask: npt.NDArray[np.int64]
    instruction_mask: npt.NDArray[np.bool_]
    expression_mask: npt.NDArray[np.bool_]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as the text encoder takes them.

    Attributes:
        input_ids: (B, N_p) int64, padded on the right.
        attention_mask: (B, N_p) int64, one where there is a token.
        instruction_mask: (B, N_p) bool, true on the tokens of the instruction: neither the
            model's own prefix and suffix, nor padding.
        expression_mask: (B, N_p) bool, true on the tokens that carry the expression itself.
        tokens: for each prompt the text of each of its tokens, without padding.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    instruction_mask: npt.NDArray[np.bool_]
    expression_mask: npt.NDArray[np.bool_]
    tokens: tuple[tuple[str, ...], ...]


class PromptEncoder:
    """Renders and tokenises expressions (docs/bundle.md, step 4)."""

    def __init__(
        self, rules: PromptRules, tokenizer_json: bytes, *, template: str | None = None
    ) -> None:
        """Load the tokenizer.

        Args:
            rules: template, prefix, suffix, length and padding.
            tokenizer_json: bytes of a Hugging Face `tokenizers` file.
            template: text with {expression} in it once, instead of the bundle's.

        Raises:
            BundleError: the tokenizer file is not one.
            InputError: the template cannot be used.
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
        self.template = rules.template
        if template is not None:
            self.template = check_template(template)
            self._refuse_control_tokens(self.template, "the template")

    def encode(self, expressions: Sequence[str]) -> EncodedPrompts:
        """Tokenise expressions, each inside the template, padded to `max_length`.

        Raises:
            InputError: see `instruct` and `tokenize`.
        """
        return self.tokenize([self.instruct(expression) for expression in expressions])

    def instruct(self, expression: str) -> Instruction:
        """Put an expression into the template.

        Raises:
            InputError: it is empty, or has control characters or the tokenizer's control
                tokens in it.
        """
        cleaned = clean_expression(expression)
        self._refuse_control_tokens(cleaned, "the expression")
        head, tail = self.template.split(_MARK)
        return Instruction(cleaned, head + cleaned + tail, len(head))

    def reword(self, instruction: Instruction, text: str) -> Instruction:
        """Put other words into an instruction, and look for its expression among them.

        Raises:
            InputError: the text is not usable, by the rules for expressions.
        """
        cleaned = clean_expression(text, what="the instruction")
        self._refuse_control_tokens(cleaned, "the instruction")
        start = cleaned.find(instruction.expression)
        reworded = Instruction(instruction.expression, cleaned, None if start < 0 else start)
        self.tokenize([reworded])
        return reworded

    def tokenize(self, instructions: Sequence[Instruction]) -> EncodedPrompts:
        """Tokenise instructions between prefix and suffix, padded to `max_length`.

        Raises:
            InputError: an instruction is too long.
        """
        length = self.rules.max_length
        shape = (len(instructions), length)
        ids = np.full(shape, self.rules.pad_id, np.int64)
        mask = np.zeros(shape, np.int64)
        told, asked = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        tokens: list[tuple[str, ...]] = []
        for row, instruction in enumerate(instructions):
            rendered = self.rules.prefix + instruction.text + self.rules.suffix
            encoding = self._tokenizer.encode(rendered, add_special_tokens=False)
            count = len(encoding.ids)
            if count > length:
                raise InputError(
                    f"the instruction '{one_line(instruction.text, limit=40)}' makes a prompt of "
                    f"{count} tokens, expected at most {length}: shorten it"
                )
            ids[row, :count] = encoding.ids
            mask[row, :count] = 1
            first = len(self.rules.prefix)
            told[row, :count] = _within(encoding.offsets, first, len(instruction.text))
            if instruction.start is not None:
                first += instruction.start
                asked[row, :count] = _within(encoding.offsets, first, len(instruction.expression))
            tokens.append(tuple(rendered[a:b] for a, b in encoding.offsets))
        return EncodedPrompts(ids, mask, told, asked, tuple(tokens))

    def _refuse_control_tokens(self, text: str, what: str) -> None:
        """Keep a text from closing the template's turn and opening another."""
        normalizer = self._tokenizer.normalizer
        seen = [text]
        if normalizer is not None:
            # A normaliser can turn look-alikes (full-width letters) into the real token.
            seen.append(normalizer.normalize_str(text))
        for token in self._control:
            if any(token in form for form in seen):
                raise InputError(
                    f"{what} contains '{one_line(token)}', a control token of this model: "
                    "take it out"
                )


def clean_expression(expression: str, *, what: str = "the expression") -> str:
    """Check an expression and collapse its white space; otherwise it is kept as it is.

    Args:
        expression: what somebody wants segmented, or another text from outside.
        what: what messages call it.

    Raises:
        InputError: not text, empty, too many characters, or control characters in it.
    """
    if not isinstance(expression, str):
        raise InputError(f"{what} is of type {type(expression).__name__}, expected text")
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise InputError(
            f"{what} has {len(expression)} characters, expected at most "
            f"{MAX_EXPRESSION_CHARACTERS}: shorten it"
        )
    cleaned = " ".join(expression.split())
    if not cleaned:
        raise InputError(f"{what} is empty, expected words such as 'the red cup'")
    for character in cleaned:
        # Cc are control characters, Cs lone halves of surrogate pairs; Cf stays, emoji use it.
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InputError(
                f"{what} contains the control character U+{ord(character):04X}: take it out"
            )
    return cleaned


def check_template(template: str) -> str:
    """Check a template as an expression is checked, and that there is one place for one in it.

    Raises:
        InputError: not text with {expression} in it once.
    """
    if not isinstance(template, str) or template.count(_MARK) != 1:
        raise InputError(
            f"template is '{one_line(template, limit=60)}', expected text with {_MARK} in it "
            f"once, such as 'remove {_MARK}'"
        )
    return clean_expression(template, what="the template")


def weigh(weights: PromptWeights, prompts: Sequence[PromptState]) -> npt.NDArray[np.float32]:
    """Make the prompt weights w of a_l = A_vp w.

    Args:
        weights: which tokens count: None or "all" for the paper's ones, "valid" for all but
            the padding, "instruction" for the template and the expression in it, "expression"
            for the expression's own; or numbers (N_p,) or (B, N_p).
        prompts: the B prompts they are for.

    Returns:
        (B, N_p) float32.

    Raises:
        InputError: none of those, or not finite; or "expression" where a refiner left none of
            the expression in its instruction.
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
        return np.stack([_token_set(weights, prompt) for prompt in prompts]).astype(np.float32)
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


def _token_set(name: str, prompt: PromptState) -> npt.NDArray[Any]:
    """Return the mask of one of the named sets but "all": (N_p,)."""
    if name == "valid":
        return prompt.attention_mask
    if name == "instruction":
        return prompt.instruction_mask
    if not prompt.expression_mask.any():
        raise InputError(
            f"the instruction '{one_line(prompt.instruction.text, limit=80)}' does not contain "
            f"'{one_line(prompt.instruction.expression, limit=40)}' word for word, expected it "
            "for the tokens 'expression': use 'instruction', or have the refiner keep it"
        )
    return prompt.expression_mask


def _within(offsets: Sequence[tuple[int, int]], start: int, length: int) -> list[bool]:
    """Say which tokens overlap a piece of the text."""
    return [a < start + length and b > start for a, b in offsets]
