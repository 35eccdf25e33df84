"""From a rendered prompt to token ids and the characters that each covers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.errors import BundleError, failures_as, one_line
from rism.runtime.prompt.quotes import CLOSING, OPENING, Piece, pieces


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one prompt.

    Attributes:
        ids: of the tokens.
        offsets: for each the characters of the rendered prompt that it covers, end exclusive.
        quoted: for each whether it is of a character in quotes.
        image_at: index of the image token; None without one.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    quoted: tuple[bool, ...]
    image_at: int | None = None

    def expanded(self, count: int) -> "TokenRow":
        """Repeat the image token."""
        at = self.image_at
        if at is None:
            return self
        return TokenRow(
            self.ids[:at] + self.ids[at : at + 1] * count + self.ids[at + 1 :],
            self.offsets[:at] + self.offsets[at : at + 1] * count + self.offsets[at + 1 :],
            self.quoted[:at] + (False,) * count + self.quoted[at + 1 :],
            at,
        )


class PromptTokenizer:
    """The bundle's tokenizer, with its rules for quotes and for the image token."""

    def __init__(self, rules: PromptRules, tokenizer_json: bytes) -> None:
        """Load the bytes of a Hugging Face `tokenizers` file.

        Raises:
            BundleError: not such a file, or it has no image token.
        """
        self._rules = rules
        with self._failures():
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
            # Truncation that is set in the file would cut expressions silently.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = [token.content for token in added.values()]
        self.control = [
            token.content
            for token in added.values()
            if token.content.strip() and (token.special or token.content.startswith("<"))
        ]
        self.image_id: int | None = None
        if rules.vision is not None:
            token = rules.vision.image_token
            found = {entry.content: number for number, entry in added.items()}
            if token not in found or not token.strip():
                raise BundleError(
                    f"'{rules.tokenizer}' has no added token '{one_line(token, limit=60)}', "
                    "expected the one of 'prompt.vision.image_token': export the bundle again"
                )
            self.image_id = found[token]
            self.control.append(token)
        self._marks = (self._only_id(OPENING), self._only_id(CLOSING))

    def forms(self, text: str) -> list[str]:
        """Return a text, and the text that the tokenizer's normaliser makes of it."""
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return [text]
        # A normaliser can turn look-alikes (full-width letters) into a real control token.
        with self._failures():
            return [text, normalizer.normalize_str(text)]

    def encode(self, rendered: str) -> TokenRow:
        """Tokenise a rendered prompt, with one image token.

        Raises:
            BundleError: the bundle's prompts need an image token, and have none or several.
        """
        quotes = self._rules.quotes
        if quotes is None:
            return self._with_image(self._plain(rendered))
        row = self._with_image(self._joined(pieces(rendered, quotes, self._added)))
        if quotes.style != "toggle" or row.image_at is None:
            return row
        # Up to the image token the prompt is tokenised as one piece, quotes included.
        head = self._with_image(self._plain(rendered))
        until, after = (head.image_at or 0) + 1, row.image_at + 1
        return TokenRow(
            head.ids[:until] + row.ids[after:],
            head.offsets[:until] + row.offsets[after:],
            head.quoted[:until] + row.quoted[after:],
            head.image_at,
        )

    def _plain(self, text: str) -> TokenRow:
        with self._failures():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return TokenRow(tuple(encoding.ids), tuple(encoding.offsets), (False,) * len(encoding.ids))

    def _joined(self, cut: list[Piece]) -> TokenRow:
        """Tokenise each piece separately."""
        rows = {text: self._plain(text) for text in {piece.text for piece in cut}}
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        quoted: list[bool] = []
        for piece in cut:
            row = rows[piece.text]
            inner, places = row.ids, row.offsets
            if piece.wrapped:
                if (inner[:1], inner[-1:]) == ((self._marks[0],), (self._marks[1],)):
                    inner = inner[1:-1]
                places = ((0, 1),) * len(inner)  # the prompt has the character without quotes
            ids += inner
            offsets += [(piece.start + a, piece.start + b) for a, b in places]
            quoted += [piece.quoted] * len(inner)
        return TokenRow(tuple(ids), tuple(offsets), tuple(quoted))

    def _with_image(self, row: TokenRow) -> TokenRow:
        """Find the image token."""
        if self.image_id is None:
            return row
        count = row.ids.count(self.image_id)
        if count != 1:
            raise BundleError(
                f"the prompt has {count} image tokens, expected 1 ('prompt.vision.image_token' "
                "once in 'prompt.prefix' or 'prompt.suffix', not in quotes): "
                "export the bundle again"
            )
        return replace(row, image_at=row.ids.index(self.image_id))

    def _only_id(self, text: str) -> int | None:
        """Return the id of a text if it is one token."""
        ids = self._plain(text).ids
        return ids[0] if len(ids) == 1 else None

    def _failures(self) -> AbstractContextManager[None]:
        return failures_as(
            lambda why: BundleError(
                f"'{self._rules.tokenizer}' is not a tokenizers file that works ({why}): "
                "export the bundle again"
            )
        )
