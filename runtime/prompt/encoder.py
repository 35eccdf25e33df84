"""From an expression to token ids, with the bundle's own tokenizer and template."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rism.runtime.arrays import BoolArray, Float32, Int64
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.engines.device_engine import Mirrored
from rism.runtime.errors import BundleError, InputError, one_line
from rism.runtime.prompt.tokenizer import PromptTokenizer, TokenRow

MAX_EXPRESSION_CHARACTERS = 4096
_MARK = "{expression}"
# Unicode's default ignorable code points and white space. Variation selectors and tags after an
# emoji are part of it.
_IGNORABLE = (
    r"\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_UNSEEN = re.compile(rf"^[{_IGNORABLE}\ufe00-\ufe0f\U000e0000-\U000e0fff]+|[{_IGNORABLE}]+$")


@dataclass(frozen=True)
class Instruction:
    """The instruction sent to the text encoder for one expression.

    Attributes:
        expression: the user's, white space collapsed.
        text: the template with the expression in it, or a refiner's version of that, followed by
            the magnets.
        start: where the expression begins in `text`; None if it is not there word for word.
        magnets: number of characters of the magnets at the end of `text`, with the space before
            them; see `PromptEncoder.append`.
    """

    expression: str
    text: str
    start: int | None
    magnets: int = 0

    @property
    def length_without_magnets(self) -> int:
        """Number of characters of `text` before the magnets."""
        return len(self.text) - self.magnets


@dataclass(frozen=True, eq=False)
class PromptState:
    """An encoded instruction; for one image if the text encoder has vision, else for any.

    Attributes:
        instruction: the instruction.
        embeds: (N_p, E) float32, on the GPU if they were computed there; `numpy.asarray` copies
            them to the host.
        tokens: text of each token, without padding.
        spans: for each of them the characters of `instruction.text` that it covers, as (start,
            end); those of the model's own prefix and suffix lie outside.
        positions: (N_p, 3) float32, if the bundle gives prompt tokens positions; else None.
        modulation: (R,) float32, if the bundle makes it by a graph of its own; else None.
    """

    instruction: Instruction
    embeds: Float32 | Mirrored
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    positions: Float32 | None = None
    modulation: Float32 | Mirrored | None = None

    @property
    def attention_mask(self) -> Int64:
        """(N_p,) int64, one where the transformer has a token."""
        return (np.arange(len(self.embeds)) < len(self.tokens)).astype(np.int64)

    @property
    def instruction_mask(self) -> BoolArray:
        """(N_p,) bool, true on the tokens of the instruction, without magnets."""
        return self.covered((0, self.instruction.length_without_magnets))

    @property
    def expression_mask(self) -> BoolArray:
        """(N_p,) bool, true on the tokens of the expression."""
        start = self.instruction.start
        if start is None:
            return self.covered()
        return self.covered((start, start + len(self.instruction.expression)))

    def covered(self, *pieces: tuple[int, int]) -> BoolArray:
        """Return which tokens overlap pieces (start, end) of the instruction's text: (N_p,)."""
        found = np.zeros(len(self.embeds), np.bool_)
        for start, end in pieces:
            found[: len(self.spans)] |= [a < end and b > start for a, b in self.spans]
        return found


@dataclass(frozen=True)
class EncodedPrompts:
    """Tokenised prompts, S tokens each for the text encoder.

    The transformer gets those after the first `drop`.

    Attributes:
        input_ids: (B, S) int64, padded on the right.
        attention_mask: (B, S) int64, one on each token that the text encoder attends to.
        seen_mask: (B, S) int64, one on each token that has a position of its own.
        quoted_mask: (B, S) int64, one on the tokens of characters in quotes.
        lengths: (B,) int64, the transformer's tokens without padding.
        tokens: for each prompt the text of each of the transformer's tokens, without padding.
        spans: for each of these tokens the characters of the instruction that it covers; see
            `PromptState`.
    """

    input_ids: Int64
    attention_mask: Int64
    seen_mask: Int64
    quoted_mask: Int64
    lengths: Int64
    tokens: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]


class PromptEncoder:
    """Renders and tokenises expressions (docs/bundle.md, step 4)."""

    def __init__(
        self, rules: PromptRules, tokenizer_json: bytes, *, template: str | None = None
    ) -> None:
        """Load the bytes of a Hugging Face `tokenizers` file; `template` replaces the bundle's.

        Raises:
            BundleError: not a tokenizer file, or it has no image token.
            InputError: the template cannot be used.
        """
        self.rules = rules
        self._tokenizer = PromptTokenizer(rules, tokenizer_json)
        self.template = rules.template
        if template is not None:
            self.template = check_template(template)
            self._refuse_control_tokens(self.template, "the template")

    @property
    def image_token_id(self) -> int | None:
        """Id of the image token; None for text encoders without vision."""
        return self._tokenizer.image_id

    def encode(self, expressions: Sequence[str], *, image_tokens: int = 0) -> EncodedPrompts:
        """Tokenise expressions, each inside the template; see `instruct` and `tokenize`."""
        return self.tokenize(
            [self.instruct(each) for each in expressions], image_tokens=image_tokens
        )

    def instruct(self, expression: str) -> Instruction:
        """Put an expression into the template.

        Raises:
            InputError: it is empty, or contains control characters or control tokens.
        """
        cleaned = clean_expression(expression)
        self._refuse_control_tokens(cleaned, "the expression")
        head, tail = self.template.split(_MARK)
        return Instruction(cleaned, head + cleaned + tail, len(head))

    def reword(self, instruction: Instruction, text: str, *, image_tokens: int = 0) -> Instruction:
        """Replace the text of an instruction, and find its expression in the new one.

        Raises:
            InputError: the text is not usable, by the rules for expressions.
        """
        cleaned = clean_expression(text, what="the instruction")
        self._refuse_control_tokens(cleaned, "the instruction")
        start = cleaned.find(instruction.expression)
        reworded = Instruction(instruction.expression, cleaned, None if start < 0 else start)
        self.tokenize([reworded], image_tokens=image_tokens)
        return reworded

    def append(self, instruction: Instruction, magnets: str) -> Instruction:
        """Append magnets to an instruction: words that absorb stray attention.

        An idea of RefAM (arXiv 2509.22650). `prompt_token_weights` gives them weight 0. A refiner
        comes before.

        Raises:
            InputError: they are not usable, by the rules for expressions.
        """
        if not magnets:
            return instruction
        added = " " + clean_expression(magnets, what="the text of magnets")
        self._refuse_control_tokens(added, "the text of magnets")
        return replace(instruction, text=instruction.text + added, magnets=len(added))

    def tokenize(
        self, instructions: Sequence[Instruction], *, image_tokens: int = 0
    ) -> EncodedPrompts:
        """Tokenise instructions between prefix and suffix, with `image_tokens` tokens of the image.

        Returns:
            With padding "tokens" S is `drop` + `max_length`, otherwise the length of the longest
            prompt.

        Raises:
            InputError: an instruction is too long.
            BundleError: `drop` leaves nothing of a prompt, or it has not one image token.
        """
        rules = self.rules
        rows = [self._row(instruction, image_tokens) for instruction in instructions]
        lengths = np.array([len(row.ids) - rules.drop for row in rows], np.int64)
        longest = int(lengths.max(initial=0))
        total = rules.drop + (rules.max_length if rules.padding == "tokens" else longest)
        ids = np.full((len(rows), total), rules.pad_id, np.int64)
        there, quoted = np.zeros(ids.shape, np.int64), np.zeros(ids.shape, np.int64)
        tokens: list[tuple[str, ...]] = []
        spans: list[tuple[tuple[int, int], ...]] = []
        for at, (row, instruction) in enumerate(zip(rows, instructions, strict=True)):
            count, first = len(row.ids), len(rules.prefix)
            kept = row.offsets[rules.drop :]
            ids[at, :count] = row.ids
            there[at, :count] = 1
            quoted[at, :count] = row.quoted
            rendered = self._render(instruction)
            tokens.append(tuple(rendered[a:b] for a, b in kept))
            spans.append(tuple((a - first, b - first) for a, b in kept))
        seen = there if rules.unseen_id is None else there * (ids != rules.unseen_id)
        attended = there if rules.unseen_attended else seen
        return EncodedPrompts(ids, attended, seen, quoted, lengths, tuple(tokens), tuple(spans))

    def _render(self, instruction: Instruction) -> str:
        return self.rules.prefix + instruction.text + self.rules.suffix

    def _row(self, instruction: Instruction, image_tokens: int) -> TokenRow:
        """Tokenise one instruction; its length is checked before the image token is repeated."""
        row = self._tokenizer.encode(self._render(instruction))
        added = 0 if row.image_at is None else image_tokens - 1
        count, length = len(row.ids) + added - self.rules.drop, self.rules.max_length
        if count > length:
            whose = f" ({image_tokens} of the image)" if row.image_at is not None else ""
            mend = "use fewer magnets, or shorten it" if instruction.magnets else "shorten it"
            raise InputError(
                f"the instruction '{one_line(instruction.text, limit=40)}' makes a prompt of "
                f"{count} tokens{whose}, expected at most {length}: {mend}"
            )
        if count < 1 and (self.rules.drop or self.rules.padding != "tokens"):
            raise BundleError(
                f"the prompt has {count + self.rules.drop} tokens, expected more than "
                f"'prompt.drop' ({self.rules.drop}): export the bundle again"
            )
        return row.expanded(image_tokens)

    def _refuse_control_tokens(self, text: str, what: str) -> None:
        """Prevent a text from ending the template's chat turn and starting another."""
        seen = self._tokenizer.forms(text)
        for token in self._tokenizer.control:
            if any(token in form for form in seen):
                raise InputError(
                    f"{what} contains '{one_line(token)}', a control token of this model: "
                    "take it out"
                )


def expression_list(expressions: str | Sequence[str]) -> list[str]:
    """Return one expression or several as a list.

    Raises:
        InputError: neither text nor an iterable of texts.
    """
    if isinstance(expressions, str):
        return [expressions]
    if isinstance(expressions, (bytes, Mapping)) or not isinstance(expressions, Iterable):
        raise InputError(
            f"the expressions are of type {type(expressions).__name__}, expected text or a list "
            "of texts"
        )
    return list(expressions)


def clean_expression(expression: object, *, what: str = "the expression") -> str:
    """Check an expression, collapse its white space, and strip invisible characters at its ends.

    Files and web pages leave byte order marks, zero-width spaces and direction marks there, whose
    tokens would change the result. Inside they are kept: emoji and some scripts need them.

    Raises:
        InputError: not text, empty, too long, or with control characters.
    """
    if not isinstance(expression, str):
        raise InputError(f"{what} is of type {type(expression).__name__}, expected text")
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise InputError(
            f"{what} has {len(expression)} characters, expected at most "
            f"{MAX_EXPRESSION_CHARACTERS}: shorten it"
        )
    cleaned = " ".join(_UNSEEN.sub("", expression).split())
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
    """Check a template like an expression, and that {expression} is in it once.

    Raises:
        InputError: not text with {expression} in it once.
    """
    if not isinstance(template, str) or template.count(_MARK) != 1:
        raise InputError(
            f"template is '{one_line(template, limit=60)}', expected text with {_MARK} in it "
            f"once, such as 'remove {_MARK}'"
        )
    return clean_expression(template, what="the template")
