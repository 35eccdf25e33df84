"""Which prompts share a run of the transformer."""

from pathlib import Path

import numpy as np

from rism.runtime.prompt.encoder import Instruction, PromptState
from rism.runtime.transformer_inputs import batches, prompt_token_weights
from tests.runtime.prompt.states import states
from tests.runtime.spies import spied


def test_batches_keep_together_what_is_alike() -> None:
    def prompt(length: int, at: float | None) -> PromptState:
        placed = None if at is None else np.full((length, 3), at, np.float32)
        embeds = np.zeros((length, 2), np.float32)
        spans = ((0, 1),) * length
        return PromptState(Instruction("a", "a", 0), embeds, ("a",) * length, spans, placed)

    plain = [prompt(n, None) for n in (4, 3, 4, 4, 3)]
    assert batches(plain, 2) == [[0, 2], [3], [1, 4]]
    placed = [prompt(n, at) for n, at in ((4, 0.0), (4, 1.0), (4, 0.0), (3, 0.0))]
    assert batches(placed, 8) == [[0, 2], [1], [3]]
    assert prompt_token_weights(None, plain).shape == (5, 4)
    assert prompt_token_weights("valid", plain).sum(1).tolist() == [4, 3, 4, 4, 3]


def test_weights_of_prompts_of_different_lengths(vision_bundle: Path, colours: np.ndarray) -> None:
    segmenter, spies = spied(vision_bundle)
    words = ["the green van", "a hat"]
    segmenter.segment(colours, words, prompt_weights="expression")
    for feeds, word in zip(spies["transformer"].fed, words, strict=True):
        encoder = segmenter._encoder
        (prompt,) = states(encoder, [encoder.instruct(word)], image_tokens=9)
        assert feeds["prompt_weights"].shape[1] >= prompt.expression_mask.sum() > 0
        assert feeds["prompt_weights"].sum() == prompt.expression_mask.sum()


def test_one_run_holds_prompts_of_one_length(vision_bundle: Path, colours: np.ndarray) -> None:
    segmenter, spies = spied(vision_bundle, max_batch=2)
    words = ["a van", "the green van", "a hat", "the hat", "a sun", "a van"]
    lengths = [len(segmenter._encoder.encode([word], image_tokens=9).tokens[0]) for word in words]
    assert len(set(lengths)) > 1 and len(set(lengths)) < len(words)
    together = segmenter.segment(colours, words)
    assert [result.expression for result in together] == words
    fed = [feeds["prompt_embeds"].shape for feeds in spies["transformer"].fed]
    assert sum(shape[0] for shape in fed) == len(words)
    assert all(shape[0] <= 2 for shape in fed)
    for feeds in spies["transformer"].fed:
        count = feeds["prompt_embeds"].shape[1]
        assert feeds["prompt_positions"].shape == (count, 3)
        assert feeds["prompt_mask"].shape == feeds["prompt_weights"].shape == (
            len(feeds["prompt_embeds"]), count,
        )  # fmt: skip
        assert feeds["prompt_mask"].all()
    rows = [feeds["input_ids"].shape for feeds in spies["text_encoder"].fed]
    assert [shape[0] for shape in rows] == [2, 2, 1]  # one of six was asked twice
    assert len({shape[1] for shape in rows}) > 1  # no longer than the longest of each run
