"""The prompt weights w of a_l = A_vp w: the weight of each token of a prompt."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line
from rism.runtime.expression.head_noun import content_words, head_noun
from rism.runtime.names import TOKEN_SETS
from rism.runtime.options import PromptWeights
from rism.runtime.prompt.encoder import PromptState

__all__ = ["prompt_token_weights"]

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_BESIDE_HEAD = 0.5  # weight of the expression's other tokens


def prompt_token_weights(
    weights: PromptWeights, prompts: Sequence[PromptState]
) -> npt.NDArray[np.float32]:
    """Return the prompt weights w of a_l = A_vp w; those of magnets are 0.

    Args:
        weights: numbers (N_p,) or (B, N_p), or the name of a set; see `SegmentOptions`.
        prompts: the B prompts that they are for.

    Returns:
        (B, N_p) float32.

    Raises:
        InputError: an unknown name, wrong or not finite numbers, or a set of the expression's
            tokens after a refiner removed the expression from its instruction.
    """
    shape = (len(prompts), max(prompt.attention_mask.size for prompt in prompts))
    if weights is None or isinstance(weights, str):
        chosen = _named(weights or "all", prompts, shape)
    else:
        chosen = _listed(weights, shape)
    for row, prompt in enumerate(prompts):
        instruction = prompt.instruction
        if instruction.magnets:
            chosen[
                row, _covered(prompt, [(instruction.length_without_magnets, len(instruction.text))])
            ] = 0
    return chosen


def _named(
    name: str, prompts: Sequence[PromptState], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    if name not in TOKEN_SETS:
        raise InputError(
            f"prompt_weights is '{one_line(name)}', expected one of {', '.join(TOKEN_SETS)} or "
            "an array"
        )
    if name == "all":
        return np.ones(shape, np.float32)
    chosen = np.zeros(shape, np.float32)
    for row, prompt in enumerate(prompts):
        chosen[row, : prompt.attention_mask.size] = _token_set(name, prompt)
    return chosen


def _listed(
    weights: npt.NDArray[np.floating[Any]] | Sequence[float], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(weights, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(
            f"prompt_weights are not an array of numbers, expected shape {shape[1:]}"
        ) from None
    if array.shape not in (shape, shape[1:]) or not np.isfinite(array).all():
        raise InputError(
            f"prompt_weights have shape {array.shape}, expected {shape[1:]} or {shape}, finite"
        )
    return np.broadcast_to(array, shape).copy()


def _token_set(name: str, prompt: PromptState) -> npt.NDArray[Any]:
    """Return the weights of a named set other than "all": (N_p,)."""
    if name == "valid":
        return prompt.attention_mask
    if name == "instruction":
        return prompt.instruction_mask
    instruction = prompt.instruction
    if instruction.start is None or not prompt.expression_mask.any():
        raise InputError(
            f"the instruction '{one_line(instruction.text, limit=80)}' does not contain "
            f"'{one_line(instruction.expression, limit=40)}' word for word, expected it for the "
            f"tokens '{name}': use 'instruction', or have the refiner keep it"
        )
    content = [
        (instruction.start + a, instruction.start + b)
        for a, b in content_words(instruction.expression)
    ]
    head = head_noun(instruction.expression)
    if name == "expression" or head is None:
        return prompt.expression_mask
    if name == "content":
        return _covered(prompt, content)
    of_head = _covered(prompt, [(instruction.start + head[0], instruction.start + head[1])])
    return np.where(of_head, 1, _BESIDE_HEAD * prompt.expression_mask)


def _covered(prompt: PromptState, pieces: Iterable[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Return which tokens overlap any of the pieces of the instruction's text: (N_p,)."""
    found = np.zeros(prompt.attention_mask.size, np.bool_)
    for first, end in pieces:
        for at, (a, b) in enumerate(prompt.spans):
            found[at] |= a < end and b > first
    return found
