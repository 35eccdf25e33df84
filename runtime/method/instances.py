"""One instance of several of a kind, chosen by words of place and size in the expression.

The paper names the failure (A5): all instances of a kind are marked. Words such as "left" weight
the map that the region is thresholded from, an idea of HybridGL and RefAM (arXiv 2509.22650); of
the separate parts of the result the one with most of that map is kept.
"""

import numpy as np
import numpy.typing as npt

from rism.runtime.arrays import BoolArray, Float32
from rism.runtime.expression.spatial_words import Cues

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_SPECK = 0.1  # a part smaller than this share of the largest is not an instance


def spatial_prior(cues: Cues, grid_hw: tuple[int, int]) -> Float32 | None:
    """Weight the token grid by words of place: the product of a ramp from 0 to 1 for each.

    Returns:
        (N_v,) float32 in (0, 1), row-major, or None without words of place.
    """
    if not cues.place:
        return None
    rows, columns = grid_hw
    down = ((np.arange(rows) + 0.5) / rows)[:, None]
    across = ((np.arange(columns) + 0.5) / columns)[None, :]
    prior = np.ones(grid_hw)
    for sign, ramp in ((cues.across, across), (cues.down, down)):
        if sign:
            prior = prior * (ramp if sign > 0 else 1 - ramp)
    if cues.middle:
        prior = prior * (1 - 2 * np.maximum(abs(across - 0.5), abs(down - 0.5)))
    return prior.astype(np.float32).ravel()


def one_instance(
    scores: Float32, weights: Float32, cues: Cues, grid_hw: tuple[int, int]
) -> Float32:
    """Keep one of the separate parts of a result, chosen by words of place or size.

    Without such words, with one part only, or if the expression means several objects ("the two
    cups on the left"), nothing changes.

    Args:
        scores: (N_v,) float32; parts are where it is positive.
        weights: (N_v,) float32, the refined map times the spatial prior, if there is one.
        cues: words of the expression.
        grid_hw: (N_h, N_w).

    Returns:
        (N_v,) float32: scores, negative on the other parts.
    """
    if not cues.one:
        return scores
    labels, count = components((scores > 0).reshape(grid_hw))
    if count < 2:
        return scores
    labels = labels.ravel()
    area = np.bincount(labels, minlength=count + 1)[1:].astype(np.float64)
    mass = np.bincount(labels, weights=weights, minlength=count + 1)[1:]
    if cues.size:
        mean = mass / area
        mass = np.where(area >= _SPECK * area.max(), mean * area**cues.size, -1.0)
    meant = labels == 1 + int(mass.argmax())
    return np.where(meant, scores, -np.abs(scores))


def components(mask_hw: BoolArray) -> tuple[npt.NDArray[np.intp], int]:
    """Label the 4-connected components of a mask, (H, W) bool.

    Returns:
        (H, W) integers, 0 outside of the mask and 1, 2, ... for the parts in the order of their
        first pixels; and how many there are.
    """
    outside = mask_hw.size
    first = np.where(mask_hw, np.arange(outside).reshape(mask_hw.shape), outside)
    # Each pixel learns of earlier pixels of its part from its neighbours, and from what these know.
    while True:
        known = first.copy()
        for lines in (known, known.T):
            lines[1:] = np.minimum(lines[1:], lines[:-1])
            lines[:-1] = np.minimum(lines[:-1], lines[1:])
            known[~mask_hw] = outside
        known = np.append(known, outside)[known]
        if np.array_equal(known, first):
            break
        first = known
    labels = np.zeros(mask_hw.shape, np.intp)
    parts, numbers = np.unique(first[mask_hw], return_inverse=True)
    labels[mask_hw] = numbers + 1
    return labels, len(parts)
