"""Baseline: post-processing as the paper writes it, equations 4 to 6 without shortcuts.

Source: arXiv 2605.13122. The features are upsampled to D x H x W and every pixel is compared
with both prototypes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

__all__ = ["literal_mask"]


def _minmax(values: Float32) -> Float32:
    scaled: Float32 = (values - values.min()) / (values.max() - values.min())
    return scaled


def _weights(size: int, cells: int) -> Float32:
    """Bilinear interpolation with half-pixel centres along one axis: (size, cells)."""
    place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), cells - 2)
    weights = np.zeros((size, cells), np.float32)
    weights[np.arange(size), low] = 1 - (place - low)
    weights[np.arange(size), low + 1] = place - low
    return weights


def literal_mask(
    propagated: Float32,
    features: Float32,
    *,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    tau: float,
) -> npt.NDArray[np.bool_]:
    """(L, N) T_l a_l and (N, D) features to an (H, W) mask."""
    region = _minmax(propagated.sum(0)) > tau
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    foreground, background = unit[region].mean(0), unit[~region].mean(0)
    maps = unit.T.reshape(-1, *grid_hw)
    down, across = _weights(size_hw[0], grid_hw[0]), _weights(size_hw[1], grid_hw[1])
    whole = down @ maps @ across.T
    pixels = whole.reshape(len(whole), -1)
    similar = np.stack([foreground @ pixels, background @ pixels])
    mask: npt.NDArray[np.bool_] = similar.argmax(0).reshape(size_hw) == 0
    return mask
