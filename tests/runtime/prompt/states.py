"""Prompt states without a text encoder: embeddings of zeros."""

import numpy as np

from rism.runtime.prompt.encoder import Instruction, PromptEncoder, PromptState


def states(encoder: PromptEncoder, instructions: list[Instruction]) -> list[PromptState]:
    encoded = encoder.tokenize(instructions)
    return [
        PromptState(
            instruction,
            np.zeros((8, 3), np.float32),
            encoded.attention_mask[i],
            encoded.instruction_mask[i],
            encoded.expression_mask[i],
            encoded.tokens[i],
            encoded.spans[i],
        )
        for i, instruction in enumerate(instructions)
    ]
