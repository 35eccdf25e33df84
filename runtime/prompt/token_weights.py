"""The prompt weights w of a_l = A_vp w: which tokens of a prompt count, and how much."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line
from rism.runtime.expression.head_noun import content_words, head_noun
from rism.runtime.prompt.encoder import PromptState

__all__ = ["TOKEN_SETS", "PromptWeights", "prompt_token_weights"]

PromptWeights: TypeAlias = str | npt.NDArray[np.floating[Any]] | Sequence[float] | None

TOKEN_SETS = ("all", "valid", "instruction", "expression", "content", "head")

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_BESIDE_HEAD = 0.5  # weight of the expression's tokens that are not of the head noun


def prompt_token_weights(
    weights: PromptWeights, prompts: Sequence[PromptState]
) -> npt.NDArray[np.float32]:
    """Make the prompt weights w of a_l = A_vp w.

    Magnets weigh nothing, whatever was chosen: they are there to take attention away.

    Args:
        weights: which tokens count: None or "all" for the paper's ones, "valid" for all but
            the padding, "instruction" for the template and the expression in it, "expression"
            for the expression's own, "content" for these without stop words, "head" for the
            head noun in full and the rest of the expression at half weight; or numbers (N_p,)
            or (B, N_p).
        prompts: the B prompts they are for.

    Returns:
        (B, N_p) float32.

    Raises:
        InputError: none of those, or not finite; or a set of the expression's tokens where a
            refiner left none of it in its instruction.
    """
    shape = (len(prompts), max(prompt.attention_mask.size for prompt in prompts))
    if weights is None or isinstance(weights, str):
        chosen = _named(weights or "all", prompts, shape)
    else:
        chosen = _listed(weights, shape)
    for row, prompt in enumerate(prompts):
        said = prompt.instruction
        if said.magnets:
            chosen[row, _covered(prompt, [(said.length_without_magnets, len(said.text))])] = 0
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
    """Return the weights of one of the named sets but "all": (N_p,)."""
    if name == "valid":
        return prompt.attention_mask
    if name == "instruction":
        return prompt.instruction_mask
    said = prompt.instruction
    if said.start is None or not prompt.expression_mask.any():
        raise InputError(
            f"the instruction '{one_line(said.text, limit=80)}' does not contain "
            f"'{one_line(said.expression, limit=40)}' word for word, expected it for the tokens "
            f"'{name}': use 'instruction', or have the refiner keep it"
        )
    content = [(said.start + a, said.start + b) for a, b in content_words(said.expression)]
    head = head_noun(said.expression)
    if name == "expression" or head is None:
        return prompt.expression_mask
    if name == "content":
        return _covered(prompt, content)
    of_head = _covered(prompt, [(said.start + head[0], said.start + head[1])])
    return np.where(of_head, 1, _BESIDE_HEAD * prompt.expression_mask)


def _covered(prompt: PromptState, pieces: Iterable[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Say which tokens overlap any of the pieces of the instruction's text: (N_p,)."""
    found = np.zeros(prompt.attention_mask.size, np.bool_)
    for first, end in pieces:
        for at, (a, b) in enumerate(prompt.spans):
            found[at] |= a < end and b > first
    return found
