"""From instructions to prompt embeddings: what is remembered, and what is computed."""

from collections.abc import Sequence
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.engines.base import Engine
from rism.runtime.engines.device_engine import Mirrored, changed, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape, repeat_last
from rism.runtime.errors import InputError
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.method.equations import Array, array_namespace
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from rism.runtime.prompt.encoder import EncodedPrompts, Instruction, PromptEncoder, PromptState
from rism.runtime.prompt.vision_encoder import VisionContext, VisionEncoder

__all__ = ["PromptEmbedder"]

Float32: TypeAlias = npt.NDArray[np.float32]
Embeds: TypeAlias = Float32 | Mirrored

INSTRUCTIONS_KEPT = 256


class PromptEmbedder:
    """Tokenises instructions and embeds those that were not seen before."""

    def __init__(
        self,
        encoder: PromptEncoder,
        engine: Engine,
        *,
        max_batch: int,
        fixed_batch: int | None,
        disk: EmbeddingCache | None = None,
        vision_encoder: VisionEncoder | None = None,
    ) -> None:
        """Put a tokenizer and a text encoder together.

        Args:
            encoder: the bundle's template and tokenizer.
            engine: the bundle's "text_encoder".
            max_batch: instructions per run, where the graph leaves it free.
            fixed_batch: instructions per run that the graph was exported for, or None.
            disk: embeddings of earlier runs; None for none.
            vision_encoder: what the text encoder looks at images with; None where it does not.
        """
        self._encoder = encoder
        self._rules = encoder.rules
        self._engine = engine
        self._batch = fixed_batch or max_batch
        self._fixed = fixed_batch
        self._disk = disk
        self._vision_encoder = vision_encoder
        self._kept: LruCache[Embeds] = LruCache(INSTRUCTIONS_KEPT)
        self._turn = Lock()

    def embed(
        self, instructions: Sequence[Instruction], image: ImageState | None = None
    ) -> tuple[list[PromptState], dict[str, float]]:
        """Return the instructions encoded, in order, and milliseconds by stage.

        Args:
            instructions: what the model is told.
            image: what it is told about; for text encoders that look at it.

        Raises:
            InputError: one of them is too long, or there is no image; then nothing was run.
            ProviderError: the text encoder or the vision encoder failed.
        """
        # Threads that ask the same of two images wait for one answer.
        with self._turn:
            return self._embed(instructions, image)

    def _embed(
        self, instructions: Sequence[Instruction], image: ImageState | None
    ) -> tuple[list[PromptState], dict[str, float]]:
        start = perf_counter()
        context, looked = VisionContext(), 0.0
        if self._vision_encoder is None:
            encoded = self._encoder.tokenize(instructions)
        else:
            image = _needed(image)
            tokens = self._vision_encoder.image_tokens(image)
            encoded = self._encoder.tokenize(instructions, image_tokens=tokens)
            context = self._vision_encoder.place_tokens(encoded, image)
        rows = {said.text: row for row, said in enumerate(instructions)}
        found = {
            text: embeds
            for text, row in rows.items()
            if (embeds := self._known(text, context, self._kept_rows(encoded, row))) is not None
        }
        missing = {text: row for text, row in rows.items() if text not in found}
        feeds = _feeds(encoded, context)
        if missing and self._vision_encoder is not None:
            before = perf_counter()
            feeds["image_embeds"] = self._vision_encoder.encode(_needed(image))
            looked = perf_counter() - before
        found |= self._make(missing, encoded, feeds, context)
        prompts = [
            self._state(said, found[said.text], encoded, row, context)
            for row, said in enumerate(instructions)
        ]
        timings = {} if self._vision_encoder is None else {"vision": looked * 1e3}
        return prompts, {**timings, "text": (perf_counter() - start - looked) * 1e3}

    def _known(self, text: str, context: VisionContext, rows: int) -> Embeds | None:
        """Look in memory, then on disk: (rows, E) or None."""
        embeds = self._kept.get(f"{context.digest}\0{text}")
        if embeds is None and self._disk is not None:
            embeds = self._disk.get(text, image=context.digest, rows=rows)
            if embeds is not None:
                self._kept.put(f"{context.digest}\0{text}", embeds)
        return embeds

    def _make(
        self,
        missing: dict[str, int],
        encoded: EncodedPrompts,
        feeds: dict[str, Any],
        context: VisionContext,
    ) -> dict[str, Embeds]:
        """Embed what is missing, each text with its row, and remember it."""
        made: dict[str, Embeds] = {}
        texts = list(missing)
        for first in range(0, len(texts), self._batch):
            some = texts[first : first + self._batch]
            rows = [missing[text] for text in some]
            whole = self._run(rows, encoded, feeds)
            for at, (text, row) in enumerate(zip(some, rows, strict=True)):
                # Without what is only padding; with padding "tokens" that is an embedding, too.
                own = at, slice(self._kept_rows(encoded, row))
                embeds = changed(whole, partial(_copied, where=own))
                made[text] = embeds
                self._kept.put(f"{context.digest}\0{text}", embeds)
                if self._disk is not None:
                    self._disk.put(text, np.asarray(embeds), image=context.digest)
        return made

    def _run(self, rows: list[int], encoded: EncodedPrompts, feeds: dict[str, Any]) -> Embeds:
        """Run the text encoder once: (len(rows) or the fixed batch, tokens, E)."""
        width = encoded.input_ids.shape[1]
        if self._rules.padding != "tokens":
            width = self._rules.drop + int(encoded.lengths[rows].max())
        some = dict(feeds)
        for name in ("input_ids", "attention_mask", "quoted_mask"):
            some[name] = repeat_last(feeds[name][rows, :width], self._fixed)
        if "position_ids" in feeds:
            own = feeds["position_ids"].transpose(1, 2, 0)[rows, :width]
            some["position_ids"] = repeat_last(own, self._fixed).transpose(2, 0, 1)
        embeds = run_in_place(self._engine, some, "prompt_embeds")
        shape = (len(some["input_ids"]), width - self._rules.drop, *embeds.shape[2:3])
        expect_shape(embeds, shape, name="prompt_embeds")
        return embeds

    def _kept_rows(self, encoded: EncodedPrompts, row: int) -> int:
        """Return how many embeddings of a prompt are kept."""
        if self._rules.padding == "tokens":
            return self._rules.max_length
        return int(encoded.lengths[row])

    def _state(
        self,
        said: Instruction,
        embeds: Embeds,
        encoded: EncodedPrompts,
        row: int,
        context: VisionContext,
    ) -> PromptState:
        """Put together what the transformer gets of one prompt: N_p columns of each."""
        length = int(encoded.lengths[row])
        width = length if self._rules.padding == "none" else self._rules.max_length
        if len(embeds) < width:
            embeds = changed(embeds, partial(_filled_up, count=width))
        return PromptState(
            said,
            embeds,
            encoded.token_mask[row, :width].astype(np.int64),
            encoded.instruction_mask[row, :width],
            encoded.expression_mask[row, :width],
            encoded.tokens[row],
            encoded.spans[row],
            _filled_up(context.positions[row], width) if context.positions else None,
        )


def _feeds(encoded: EncodedPrompts, context: VisionContext) -> dict[str, Any]:
    feeds: dict[str, Any] = {
        "input_ids": encoded.input_ids,
        "attention_mask": encoded.attention_mask,
        "quoted_mask": encoded.quoted_mask,
    }
    if context.position_ids is not None:
        feeds["position_ids"] = context.position_ids
    return feeds


def _copied(rows: Array, where: tuple[int, slice]) -> Array:
    """Return a part as float32, which holds no more than itself in memory."""
    return rows[where].astype(np.float32)


def _filled_up(rows: Array, count: int) -> Array:
    """Add rows of zeros up to a number of rows."""
    surplus = count - len(rows)
    return array_namespace(rows).pad(rows, ((0, surplus), (0, 0))) if surplus > 0 else rows


def _needed(image: ImageState | None) -> ImageState:
    if image is None:
        raise InputError("this bundle's text encoder looks at the image, expected one to embed")
    return image
