"""From instructions to prompt embeddings, with caches in memory and on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from rism.runtime.arrays import Float32, Int64
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.bundle.manifest import Manifest
from rism.runtime.engines.base import Engine
from rism.runtime.engines.device_engine import Mirrored, array_namespace, changed, run_in_place
from rism.runtime.engines.tensor_checks import expect_shape, fixed_batch, repeat_last
from rism.runtime.errors import InputError
from rism.runtime.image_encoder import ImageState
from rism.runtime.lru_cache import LruCache
from rism.runtime.prompt.embedding_cache import EmbeddingCache
from rism.runtime.prompt.encoder import EncodedPrompts, Instruction, PromptEncoder, PromptState
from rism.runtime.prompt.vision_encoder import VisionContext, VisionEncoder

Embeds: TypeAlias = Float32 | Mirrored

INSTRUCTIONS_KEPT = 256


@dataclass(frozen=True)
class _Embedded:
    """What the graphs made of one instruction: its embeddings, and its modulation (1, R)."""

    embeds: Embeds
    modulation: Embeds | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.embeds.nbytes + (0 if self.modulation is None else self.modulation.nbytes)


def modulation_of(
    manifest: Manifest, engines: Mapping[str, Engine]
) -> tuple[Engine, GraphSpec] | None:
    """Return a bundle's engine and graph "modulation", None where it has none."""
    graph = manifest.graphs.get("modulation")
    return None if graph is None else (engines["modulation"], graph)


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
        modulation: tuple[Engine, GraphSpec] | None = None,
    ) -> None:
        """Take a tokenizer and the bundle's "text_encoder", and its "modulation" if it has one.

        `max_batch` instructions go into a run, or `fixed_batch` if the graph was exported for it.
        """
        self._encoder = encoder
        self._rules = encoder.rules
        self._engine = engine
        self._batch = fixed_batch or max_batch
        self._fixed = fixed_batch
        self._disk = disk
        self._vision_encoder = vision_encoder
        self._modulation = modulation
        self._kept: LruCache[_Embedded] = LruCache(INSTRUCTIONS_KEPT)
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
            text: cached
            for text, row in rows.items()
            if (cached := self._cached(text, context, self._kept_rows(encoded, row))) is not None
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

    def _cached(self, text: str, context: VisionContext, rows: int) -> _Embedded | None:
        """Look up what was made of a text in memory, then on disk; `rows` are its embeddings."""
        found = self._kept.get(f"{context.digest}\0{text}")
        if found is None and self._disk is not None:
            embeds, modulation = self._disk.get(text, image=context.digest, rows=rows), None
            if embeds is None:
                return None
            if self._modulation is not None:
                width = self._modulation[1].outputs["modulation"].shape[1]
                if isinstance(width, int):
                    modulation = self._disk.get(text, image=context.digest, width=width)
                if modulation is None:
                    return None
            found = _Embedded(embeds, modulation)
            self._kept.put(f"{context.digest}\0{text}", found)
        return found

    def _compute(
        self,
        missing: dict[str, int],
        encoded: EncodedPrompts,
        feeds: dict[str, Any],
        context: VisionContext,
    ) -> dict[str, _Embedded]:
        """Embed the missing texts, each with its row, and keep them in the caches."""
        computed: dict[str, _Embedded] = {}
        texts = list(missing)
        batches = [texts[at : at + self._batch] for at in range(0, len(texts), self._batch)]
        rows = [[missing[text] for text in some] for some in batches]
        # One graph after the other: neither needs to stay for the other's sake.
        embedded = [self._run(own, encoded, feeds) for own in rows]
        modulated = [
            self._modulate(batch, encoded.lengths[own])
            for batch, own in zip(embedded, rows, strict=True)
        ]
        for some, batch, modulation in zip(batches, embedded, modulated, strict=True):
            for at, text in enumerate(some):
                # Without padding, except for padding "tokens", which is embedded, too.
                own_rows = at, slice(self._kept_rows(encoded, missing[text]))
                found = _Embedded(
                    changed(batch, partial(_copied, where=own_rows)),
                    None
                    if modulation is None
                    else changed(modulation, partial(_copied, where=(slice(at, at + 1),))),
                )
                computed[text] = found
                self._kept.put(f"{context.digest}\0{text}", found)
                self._store(text, found, context)
        return computed

    def _store(self, text: str, found: _Embedded, context: VisionContext) -> None:
        if self._disk is None:
            return
        self._disk.put(text, np.asarray(found.embeds), image=context.digest)
        if found.modulation is not None:
            modulation = np.asarray(found.modulation)
            self._disk.put(text, modulation, image=context.digest, modulation=True)

    def _modulate(self, embeds: Embeds, lengths: Int64) -> Embeds | None:
        """Run the graph of the modulation on prompts of these lengths: (B, R)."""
        if self._modulation is None:
            return None
        engine, graph = self._modulation
        mask = np.arange(embeds.shape[1]) < lengths[:, None]
        count = fixed_batch(graph.inputs, "prompt_mask")
        rows = slice(count or len(lengths))
        feeds = {
            "prompt_embeds": changed(embeds, lambda batch: batch[rows]),
            "prompt_mask": repeat_last(mask.astype(np.float32), count),
        }
        found = run_in_place(engine, feeds, "modulation")
        expect_shape(found, (len(feeds["prompt_mask"]), *found.shape[1:2]), name="modulation")
        return found

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
        found: _Embedded,
        encoded: EncodedPrompts,
        row: int,
        context: VisionContext,
    ) -> PromptState:
        """Return the transformer's inputs for one prompt: N_p columns of each."""
        length, embeds = int(encoded.lengths[row]), found.embeds
        width = length if self._rules.padding == "none" else self._rules.max_length
        if len(embeds) < width:
            embeds = changed(embeds, partial(_filled_up, count=width))
        positions = _filled_up(context.positions[row], width) if context.positions else None
        modulation = found.modulation
        return PromptState(
            instruction,
            embeds,
            encoded.tokens[row],
            encoded.spans[row],
            positions,
            None if modulation is None else changed(modulation, lambda rows: rows[0]),
        )


def _copied(rows: Any, where: tuple[int | slice, ...]) -> Any:
    """Return a part as float32, copied so that the rest can be freed."""
    return rows[where].astype(np.float32)


def _filled_up(rows: Any, count: int) -> Any:
    """Append rows of zeros up to a number of rows."""
    surplus = count - len(rows)
    return array_namespace(rows).pad(rows, ((0, surplus), (0, 0))) if surplus > 0 else rows
