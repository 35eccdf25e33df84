"""From what passes gave to masks at the picture's size, by the runtime's own functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rism.evaluation.ablate.grid import MAP_THRESHOLD, FeatureSetting, Grid, Setting
from rism.evaluation.datasets.sample import Mask
from rism.evaluation.metrics.iou import Overlap, overlap
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import coarse_map, refined_map, segment_tokens
from rism.runtime.method.upsampling import upsample

__all__ = ["Captured", "masks", "overlaps"]

_MAPS = {"CAM": ("attention_vectors", coarse_map), "RAM": ("propagated_vectors", refined_map)}


class Captured(Protocol):
    """What one pass gives; see `Pass`."""

    @property
    def timestep(self) -> int:
        """The denoising step."""

    @property
    def attention_vectors(self) -> npt.NDArray[np.float32]:
        """(L, N_v), a_l."""

    @property
    def propagated_vectors(self) -> npt.NDArray[np.float32]:
        """(L, N_v), T_l a_l."""

    @property
    def features(self) -> dict[tuple[str, int], npt.NDArray[Any]]:
        """(N_v, D) by site and block."""


def masks(grid: Grid, passes: Iterable[Captured], plan: Plan) -> Iterator[tuple[Setting, Mask]]:
    """Make the mask of every setting; one pass is held at a time, and step 0's vectors.

    Args:
        grid: the settings.
        passes: by rising step, beginning with 0.
        plan: how the picture was brought to the model's grid.

    Yields:
        Settings in the order of `grid.settings`, with (H, W) bool.
    """
    first: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
    for found in passes:
        if first is None:
            first = found.attention_vectors, found.propagated_vectors
        subsets = grid.subsets
        for each in grid.maps(found.timestep):
            name, equation = _MAPS[each.map]
            values = equation(getattr(found, name)[subsets[each.blocks]])
            yield each, upsample(values.reshape(plan.grid_hw), plan) > MAP_THRESHOLD
        for one in grid.features(found.timestep):
            yield one, _whole_method(one, first, found, plan)


def _whole_method(
    setting: FeatureSetting,
    vectors: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    found: Captured,
    plan: Plan,
) -> Mask:
    features = found.features[setting.site, setting.block].astype(np.float32, copy=False)
    answer = segment_tokens(*vectors, features, tau=setting.tau)
    mask: Mask = upsample(answer.scores.reshape(plan.grid_hw), plan) > 0
    return mask


def overlaps(
    grid: Grid, passes: Iterable[Captured], plan: Plan, true_hw: Mask
) -> dict[Setting, Overlap]:
    """Compare every setting's mask with the true one."""
    return {setting: overlap(mask, true_hw) for setting, mask in masks(grid, passes, plan)}
