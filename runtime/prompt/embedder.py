"""From instructions to prompt embeddings, with caches in memory and on disk."""

from collections.abc import Sequence
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from rism.runtime.arrays import Float32
from rism.runtime.engines.base import Engine
from rism.runtime.engines.device_engine import Mirrored, array_namespace, changed, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape, repeat_last
from rism.runtime.errors import InputError
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from rism.runtime.prompt.encoder import EncodedPrompts, Instruction, PromptEncoder, PromptState
from rism.runtime.prompt.vision_encoder import VisionContext, VisionEncoder

Embeds: TypeAlias = Float32 | Mirrored

INSTRUCTIONS_KEPT = 256


class PromptEmbedder:
    """Tokenises instructions and embeds those that are not in its caches."""

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
        """Take a tokenizer and the bundle's "text_encoder".

        `max_batch` instructions go into a run, or `fixed_batch` if the graph was exported for it.
        """
        self._encoder = encoder
        self._rules = encoder.rules
        self._engine = engine
        self._batch = fixed_batch or max_batch
        self._fixed = fixed_batch
        self._disk = disk
        self._vision_encoder = vision_encoder
        self._kept: LruCache[Embeds] = LruCache(INSTRUCTIONS_KEPT)
        self._lock = Lock()

    def embed(
        self, instructions: Sequence[Instruction], image: ImageState | None = None
    ) -> tuple[list[PromptState], dict[str, float]]:
        """Return the prompts of instructions for one image, in order, and milliseconds by stage.

        Text encoders with vision need the image.

        Raises:
            InputError: an instruction is too long, or there is no image; then nothing was run.
            ProviderError: the text encoder or the vision encoder failed.
        """
        # One thread at a time: others wait for its embeddings instead of computing them again.
        with self._lock:
            return self._embed(instructions, image)

    def _embed(
        self, instructions: Sequence[Instruction], image: ImageState | None
    ) -> tuple[list[PromptState], dict[str, float]]:
        start = perf_counter()
        context, tokens, vision_s = VisionContext(), 0, 0.0
        if self._vision_encoder is not None:
            if image is None:
                raise InputError("this bundle's text encoder needs an image, expected one to embed")
            tokens = self._vision_encoder.image_tokens(image)
        encoded = self._encoder.tokenize(instructions, image_tokens=tokens)
        if self._vision_encoder is not None and image is not None:
            context = self._vision_encoder.place_tokens(encoded, image)
        rows = {each.text: row for row, each in enumerate(instructions)}
        found = {
            text: embeds
            for text, row in rows.items()
            if (embeds := self._cached(text, context, self._kept_rows(encoded, row))) is not None
        }
        missing = {text: row for text, row in rows.items() if text not in found}
        feeds: dict[str, Any] = {
            "input_ids": encoded.input_ids,
            "attention_mask": encoded.attention_mask,
            "quoted_mask": encoded.quoted_mask,
        }
        if context.position_ids is not None:
            feeds["position_ids"] = context.position_ids
        if missing and self._vision_encoder is not None and image is not None:
            before = perf_counter()
            feeds["image_embeds"] = self._vision_encoder.encode(image)
            vision_s = perf_counter() - before
        found |= self._compute(missing, encoded, feeds, context)
        prompts = [
            self._state(each, found[each.text], encoded, row, context)
            for row, each in enumerate(instructions)
        ]
        timings = {} if self._vision_encoder is None else {"vision": vision_s * 1e3}
        return prompts, {**timings, "text": (perf_counter() - start - vision_s) * 1e3}

    def _cached(self, text: str, context: VisionContext, rows: int) -> Embeds | None:
        """Look up an embedding in memory, then on disk: (rows, E) or None."""
        embeds = self._kept.get(f"{context.digest}\0{text}")
        if embeds is None and self._disk is not None:
            embeds = self._disk.get(text, image=context.digest, rows=rows)
            if embeds is not None:
                self._kept.put(f"{context.digest}\0{text}", embeds)
        return embeds

    def _compute(
        self,
        missing: dict[str, int],
        encoded: EncodedPrompts,
        feeds: dict[str, Any],
        context: VisionContext,
    ) -> dict[str, Embeds]:
        """Embed the missing texts, each with its row, and keep them in the caches."""
        computed: dict[str, Embeds] = {}
        texts = list(missing)
        for first in range(0, len(texts), self._batch):
            some = texts[first : first + self._batch]
            rows = [missing[text] for text in some]
            batch = self._run(rows, encoded, feeds)
            for at, (text, row) in enumerate(zip(some, rows, strict=True)):
                # Without padding, except for padding "tokens", which is embedded, too.
                own = at, slice(self._kept_rows(encoded, row))
                embeds = changed(batch, partial(_copied, where=own))
                computed[text] = embeds
                self._kept.put(f"{context.digest}\0{text}", embeds)
                if self._disk is not None:
                    self._disk.put(text, np.asarray(embeds), image=context.digest)
        return computed

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
        """Return the number of embeddings that are kept of a prompt."""
        if self._rules.padding == "tokens":
            return self._rules.max_length
        return int(encoded.lengths[row])

    def _state(
        self,
        instruction: Instruction,
        embeds: Embeds,
        encoded: EncodedPrompts,
        row: int,
        context: VisionContext,
    ) -> PromptState:
        """Return the transformer's inputs for one prompt: N_p columns of each."""
        length = int(encoded.lengths[row])
        width = length if self._rules.padding == "none" else self._rules.max_length
        if len(embeds) < width:
            embeds = changed(embeds, partial(_filled_up, count=width))
        positions = _filled_up(context.positions[row], width) if context.positions else None
        return PromptState(instruction, embeds, encoded.tokens[row], encoded.spans[row], positions)


def _copied(rows: Any, where: tuple[int, slice]) -> Any:
    """Return a part as float32, copied so that the rest can be freed."""
    return rows[where].astype(np.float32)


def _filled_up(rows: Any, count: int) -> Any:
    """Append rows of zeros up to a number of rows."""
    surplus = count - len(rows)
    return array_namespace(rows).pad(rows, ((0, surplus), (0, 0))) if surplus > 0 else rows
