"""Computes the mask of every setting from captured passes, with the runtime's functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.evaluation.ablate.grid import MAP_THRESHOLD, Grid, Setting
from rism.evaluation.datasets.sample import Mask
from rism.evaluation.metrics.iou import Overlap, overlap
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import coarse_map, refined_map, segment_tokens
from rism.runtime.method.upsampling import upsample

Float32 = npt.NDArray[np.float32]

_MAPS = {"CAM": ("attention_vectors", coarse_map), "RAM": ("propagated_vectors", refined_map)}


@dataclass(frozen=True)
class Pass:
    """The captured quantities of one forward pass for one expression.

    Attributes:
        timestep: the denoising step, 0 for pure noise.
        attention_vectors: (L, N_v) float32, a_l of every block.
        propagated_vectors: (L, N_v) float32, T_l a_l.
        features: (N_v, D) by site and block; in float16 each token is divided by its largest
            number.
        velocity: (N_n, C) float32, the prediction for the noisy tokens.
        noisy_grid: k, where only every k-th row and column has noisy tokens.
    """

    timestep: int
    attention_vectors: Float32
    propagated_vectors: Float32
    features: Mapping[tuple[str, int], npt.NDArray[Any]] = field(repr=False)
    velocity: Float32 = field(repr=False)
    noisy_grid: int = 1


def masks(grid: Grid, passes: Iterable[Pass], plan: Plan) -> Iterator[tuple[Setting, Mask]]:
    """Compute the mask of every setting, with one pass in memory at a time.

    Passes come by rising step, beginning with 0; those of fewer noisy tokens are the last.

    Yields:
        Settings in the order of `grid.settings`, with (H, W) bool.
    """
    first: tuple[Float32, Float32] | None = None
    for found in passes:
        if found.noisy_grid > 1:
            yield from _choices(grid, found, plan)
            continue
        first = first or (found.attention_vectors, found.propagated_vectors)
        for setting in grid.maps(found.timestep):
            name, equation = _MAPS[setting.map]
            values = equation(getattr(found, name)[grid.subsets[setting.blocks]])
            yield setting, upsample(values.reshape(plan.grid_hw), plan) > MAP_THRESHOLD
        for each in grid.features(found.timestep):
            features = found.features[each.site, each.block].astype(np.float32, copy=False)
            scores = segment_tokens(*first, features, tau=each.tau).scores
            yield each, upsample(scores.reshape(plan.grid_hw), plan) > 0
        if found.timestep == 0:
            yield from _choices(grid, found, plan)


def _choices(grid: Grid, found: Pass, plan: Plan) -> Iterator[tuple[Setting, Mask]]:
    features = found.features[grid.feature_site, grid.feature_block].astype(np.float32, copy=False)
    for each in grid.choices(found.noisy_grid):
        rows = grid.rows(each)
        read = found.attention_vectors[rows], found.propagated_vectors[rows]
        scores = segment_tokens(*read, features, tau=grid.tau).scores
        yield each, upsample(scores.reshape(plan.grid_hw), plan) > 0


def overlaps(
    grid: Grid, passes: Iterable[Pass], plan: Plan, true_hw: Mask
) -> dict[Setting, Overlap]:
    """Compare every setting's mask with the true one."""
    return {setting: overlap(mask, true_hw) for setting, mask in masks(grid, passes, plan)}
