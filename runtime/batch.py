"""Prompts that one run of the transformer can hold, and what is fed to it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime import geometry
from rism.runtime.capture import repeat_last
from rism.runtime.engines import Arrays
from rism.runtime.picture import ImageState
from rism.runtime.prompt import PromptState

__all__ = ["batches", "transformer_feeds"]

Float32: TypeAlias = npt.NDArray[np.float32]


def batches(prompts: Sequence[PromptState], size: int) -> list[list[int]]:
    """Group prompts by what a run has once for all of them: length and positions.

    Args:
        prompts: in any order.
        size: at most this many in a group.

    Returns:
        Groups of indices into `prompts`, in the order of their first.
    """
    alike: dict[tuple[int, bytes], list[int]] = {}
    for at, prompt in enumerate(prompts):
        placed = b"" if prompt.positions is None else prompt.positions.tobytes()
        alike.setdefault((len(prompt.embeds), placed), []).append(at)
    return [
        group[first : first + size]
        for group in alike.values()
        for first in range(0, len(group), size)
    ]


def transformer_feeds(
    state: ImageState,
    prompts: Sequence[PromptState],
    *,
    weights: Float32,
    noise: Float32,
    tau: float,
    fixed: int | None,
) -> Arrays:
    """Return all that a transformer graph may ask for, by logical name.

    Args:
        state: the picture.
        prompts: one of the groups of `batches`.
        weights: (len(prompts), N_p) float32.
        noise: (rows, C) float32, the bundle's.
        tau: region threshold.
        fixed: the batch that the graph was exported for, to be filled up; None where it is free.
    """
    batch = fixed or len(prompts)
    feeds: Arrays = {
        "clean_latents": np.repeat(state.clean_latents, batch, axis=0),
        "noise": noise[None, : state.plan.tokens],
        "prompt_embeds": repeat_last(np.stack([p.embeds for p in prompts]), fixed),
        "prompt_weights": repeat_last(weights, fixed),
        "prompt_mask": repeat_last(
            np.stack([p.attention_mask for p in prompts]).astype(np.float32), fixed
        ),
        "positions": geometry.positions(state.plan.grid_hw),
        "tau": np.array([tau], np.float32),
    }
    if prompts[0].positions is not None:
        feeds["prompt_positions"] = prompts[0].positions
    return feeds
