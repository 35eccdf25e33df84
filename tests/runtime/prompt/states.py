"""Prompt states without a text encoder: embeddings of zeros."""

import numpy as np

from rism.runtime.prompt.encoder import Instruction, PromptEncoder, PromptState


def states(
    encoder: PromptEncoder, instructions: list[Instruction], *, image_tokens: int = 0
) -> list[PromptState]:
    found = encoder.tokenize(instructions, image_tokens=image_tokens)
    return [
        PromptState(
            instruction,
            np.zeros((found.token_mask.shape[1], 3), np.float32),
            found.token_mask[row].astype(np.int64),
            found.instruction_mask[row],
            found.expression_mask[row],
            found.tokens[row],
            found.spans[row],
        )
        for row, instruction in enumerate(instructions)
    ]
