"""Prompt states without a text encoder: embeddings of zeros."""

import numpy as np

from rism.runtime.prompt.encoder import Instruction, PromptEncoder, PromptState


def states(
    encoder: PromptEncoder, instructions: list[Instruction], *, image_tokens: int = 0
) -> list[PromptState]:
    found = encoder.tokenize(instructions, image_tokens=image_tokens)
    rules = encoder.rules
    width = max(found.lengths) if rules.padding == "none" else rules.max_length
    embeds = np.zeros((width, 3), np.float32)
    rows = zip(instructions, found.tokens, found.spans, strict=True)
    return [PromptState(each, embeds, tokens, spans) for each, tokens, spans in rows]
