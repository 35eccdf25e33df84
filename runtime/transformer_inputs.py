"""Batches of prompts for the transformer, the weights of their tokens, and its graph's inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.runtime.arrays import Array, Float32
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.engines.cuda_device import Device
from rism.runtime.engines.device_engine import Mirrored, array_namespace, at, held
from rism.runtime.engines.tensor_checks import repeat_last
from rism.runtime.errors import InputError, one_line
from rism.runtime.expression.head_noun import content_words, head_noun
from rism.runtime.image import geometry
from rism.runtime.image_encoder import ImageState
from rism.runtime.names import TOKEN_SETS
from rism.runtime.options import PromptWeights
from rism.runtime.prompt.encoder import PromptState

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_BESIDE_HEAD = 0.5  # weight of the expression's other tokens


def batches(prompts: Sequence[PromptState], size: int) -> list[list[int]]:
    """Group prompts that one run can hold: at most `size` of equal length and positions.

    Returns:
        Groups of indices into `prompts`, in the order of their first.
    """
    alike: dict[tuple[int, bytes], list[int]] = {}
    for row, prompt in enumerate(prompts):
        positions = b"" if prompt.positions is None else prompt.positions.tobytes()
        alike.setdefault((len(prompt.embeds), positions), []).append(row)
    return [
        group[first : first + size]
        for group in alike.values()
        for first in range(0, len(group), size)
    ]


def prompt_rows(rules: PromptRules, prompts: Sequence[PromptState], weights: Float32) -> int:
    """Return how many embeddings of each prompt the transformer needs.

    Args:
        rules: the bundle's.
        prompts: one of the groups of `batches`.
        weights: (len(prompts), N_p) float32; padding can share a row if it shares a weight.
    """
    given = len(prompts[0].embeds)
    if not rules.shared_padding:
        return given
    used = min(given, max(len(prompt.tokens) for prompt in prompts) + 1)
    return used if (weights[:, used:] == weights[:, used - 1 : used]).all() else given


def transformer_feeds(
    state: ImageState,
    prompts: Sequence[PromptState],
    *,
    rules: PromptRules,
    weights: Float32,
    noise: Float32 | Mirrored,
    tau: float,
    fixed: int | None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Return every input that a transformer graph may have, by logical name.

    The prompts are one of the groups of `batches`, made by the bundle's `rules`, their weights
    (len(prompts), N_p) float32, and the bundle's noise is (rows, C) float32. A batch `fixed` by the
    export is filled up. Arrays that are on `device`, the GPU of an engine that takes device arrays,
    stay there.
    """
    batch = fixed or len(prompts)
    filled = [*prompts, *[prompts[-1]] * (batch - len(prompts))]
    rows = prompt_rows(rules, prompts, weights)
    with held(device):
        latents = at(state.latents, device)
        feeds = {
            "clean_latents": array_namespace(latents).repeat(latents, batch, axis=0),
            "noise": at(noise, device)[None, : state.plan.tokens],
            "prompt_embeds": _stacked([prompt.embeds for prompt in filled], device)[:, :rows],
        }
    feeds |= {
        "prompt_weights": repeat_last(weights[:, :rows], fixed),
        "prompt_mask": np.stack([p.attention_mask[:rows] for p in filled]).astype(np.float32),
        "positions": geometry.positions(state.plan.grid_hw),
        "tau": np.array([tau], np.float32),
    }
    if prompts[0].positions is not None:
        feeds["prompt_positions"] = prompts[0].positions
    modulations = [p.modulation for p in filled if p.modulation is not None]
    if modulations:
        with held(device):
            feeds["modulation"] = _stacked(modulations, device)
    return feeds


def _stacked(arrays: Sequence[Float32 | Mirrored], device: Device | None) -> Any:
    """Stack on the device if one of the arrays may be there, else on the host."""
    if device is None or not any(isinstance(each, Mirrored) for each in arrays):
        return np.stack([np.asarray(each) for each in arrays])
    there = [(each if isinstance(each, Mirrored) else Mirrored(each)).on(device) for each in arrays]
    return array_namespace(there[0]).stack(there)


def prompt_token_weights(weights: PromptWeights, prompts: Sequence[PromptState]) -> Float32:
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
    shape = (len(prompts), max(len(prompt.embeds) for prompt in prompts))
    if weights is None or isinstance(weights, str):
        chosen = _named(weights or "all", prompts, shape)
    else:
        chosen = _listed(weights, shape)
    for row, prompt in enumerate(prompts):
        text, first = prompt.instruction.text, prompt.instruction.length_without_magnets
        chosen[row, : len(prompt.embeds)][prompt.covered((first, len(text)))] = 0
    return chosen


def _named(name: str, prompts: Sequence[PromptState], shape: tuple[int, int]) -> Float32:
    if name not in TOKEN_SETS:
        raise InputError(
            f"prompt_weights is '{one_line(name)}', expected one of {', '.join(TOKEN_SETS)} or "
            "an array"
        )
    if name == "all":
        return np.ones(shape, np.float32)
    chosen = np.zeros(shape, np.float32)
    for row, prompt in enumerate(prompts):
        chosen[row, : len(prompt.embeds)] = _token_set(name, prompt)
    return chosen


def _listed(
    weights: npt.NDArray[np.floating[Any]] | Sequence[float], shape: tuple[int, int]
) -> Float32:
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


def _token_set(name: str, prompt: PromptState) -> Array:
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
    start, head = instruction.start, head_noun(instruction.expression)
    if name == "expression" or head is None:
        return prompt.expression_mask
    if name == "content":
        words = content_words(instruction.expression)
        return prompt.covered(*((start + a, start + b) for a, b in words))
    of_head = prompt.covered((start + head[0], start + head[1]))
    return np.where(of_head, 1, _BESIDE_HEAD * prompt.expression_mask)
