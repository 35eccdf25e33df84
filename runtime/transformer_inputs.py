"""Batches of prompts for the transformer, and the inputs of its graph."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.engines.cuda_device import Device
from rism.runtime.engines.device_engine import Mirrored, array_namespace, at, held
from rism.runtime.engines.tensor_checks import repeat_last
from rism.runtime.image import geometry
from rism.runtime.image_encoder import ImageState
from rism.runtime.prompt.encoder import PromptState

__all__ = ["batches", "transformer_feeds"]

Float32: TypeAlias = npt.NDArray[np.float32]


def batches(prompts: Sequence[PromptState], size: int) -> list[list[int]]:
    """Group prompts that one run can hold: those of equal length and positions.

    Args:
        prompts: in any order.
        size: at most this many in a group.

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


def transformer_feeds(
    state: ImageState,
    prompts: Sequence[PromptState],
    *,
    weights: Float32,
    noise: Float32 | Mirrored,
    tau: float,
    fixed: int | None,
    device: Device | None = None,
) -> dict[str, Any]:
    """Return every input that a transformer graph may have, by logical name.

    Args:
        state: the image.
        prompts: one of the groups of `batches`.
        weights: (len(prompts), N_p) float32.
        noise: (rows, C) float32, the bundle's.
        tau: region threshold.
        fixed: the batch that the graph was exported for, which is filled up; None where it is
            free.
        device: the GPU of an engine that takes device arrays; arrays that are there stay there.
    """
    batch = fixed or len(prompts)
    filled = [*prompts, *[prompts[-1]] * (batch - len(prompts))]
    with held(device):
        latents = at(state.latents, device)
        feeds = {
            "clean_latents": array_namespace(latents).repeat(latents, batch, axis=0),
            "noise": at(noise, device)[None, : state.plan.tokens],
            "prompt_embeds": _stacked([prompt.embeds for prompt in filled], device),
        }
    feeds |= {
        "prompt_weights": repeat_last(weights, fixed),
        "prompt_mask": np.stack([p.attention_mask for p in filled]).astype(np.float32),
        "positions": geometry.positions(state.plan.grid_hw),
        "tau": np.array([tau], np.float32),
    }
    if prompts[0].positions is not None:
        feeds["prompt_positions"] = prompts[0].positions
    return feeds


def _stacked(arrays: Sequence[Float32 | Mirrored], device: Device | None) -> Any:
    """Stack on the device if one of the arrays may be there, else on the host."""
    if device is None or not any(isinstance(each, Mirrored) for each in arrays):
        return np.stack([np.asarray(each) for each in arrays])
    there = [(each if isinstance(each, Mirrored) else Mirrored(each)).on(device) for each in arrays]
    return array_namespace(there[0]).stack(there)
