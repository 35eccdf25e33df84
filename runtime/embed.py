"""From instructions to prompt embeddings: what is remembered, and what is computed."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.cache import LruCache
from rism.runtime.capture import repeat_last
from rism.runtime.embedding_cache import EmbeddingCache
from rism.runtime.engines import Engine
from rism.runtime.prompt import Instruction, PromptEncoder, PromptState

__all__ = ["PromptEmbedder"]

Float32: TypeAlias = npt.NDArray[np.float32]

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
    ) -> None:
        """Put a tokenizer and a text encoder together.

        Args:
            encoder: the bundle's template and tokenizer.
            engine: the bundle's "text_encoder".
            max_batch: instructions per run, where the graph leaves it free.
            fixed_batch: instructions per run that the graph was exported for, or None.
            disk: embeddings of earlier runs; None for none.
        """
        self._encoder = encoder
        self._engine = engine
        self._batch = fixed_batch or max_batch
        self._fixed = fixed_batch
        self._disk = disk
        self._kept: LruCache[Float32] = LruCache(INSTRUCTIONS_KEPT)

    def embed(self, instructions: Sequence[Instruction]) -> list[PromptState]:
        """Return the instructions encoded, in order.

        Raises:
            InputError: one of them is too long; then nothing was run.
            ProviderError: the text encoder failed.
        """
        encoded = self._encoder.tokenize(instructions)
        found = {said.text: self._known(said.text) for said in instructions}
        missing = {
            said.text: row for row, said in enumerate(instructions) if found[said.text] is None
        }
        texts = list(missing)
        for first in range(0, len(texts), self._batch):
            some = texts[first : first + self._batch]
            rows = [missing[text] for text in some]
            embeds = self._run(encoded.input_ids[rows], encoded.attention_mask[rows])
            for text, embed in zip(some, embeds, strict=True):
                found[text] = embed
                self._kept.put(text, embed)
                if self._disk is not None:
                    self._disk.put(text, embed)
        return [
            PromptState(
                said,
                known,
                encoded.attention_mask[row],
                encoded.instruction_mask[row],
                encoded.expression_mask[row],
                encoded.tokens[row],
            )
            for row, said in enumerate(instructions)
            if (known := found[said.text]) is not None
        ]

    def _known(self, text: str) -> Float32 | None:
        """Look in memory, then on disk."""
        embeds = self._kept.get(text)
        if embeds is None and self._disk is not None:
            embeds = self._disk.get(text)
            if embeds is not None:
                self._kept.put(text, embeds)
        return embeds

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> list[Float32]:
        feeds = {
            "input_ids": repeat_last(ids, self._fixed),
            "attention_mask": repeat_last(mask, self._fixed),
        }
        embeds = self._engine.run(feeds)["prompt_embeds"][: len(ids)]
        return [embed.astype(np.float32) for embed in embeds]
