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
    height, width = mask_hw.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask_hw
    steps = np.diff(padded, axis=1)
    # Runs of each row, row by row; a run's number is its place in this list.
    rows, starts = np.nonzero(steps == 1)
    stops = np.nonzero(steps == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    firsts = np.searchsorted(rows, np.arange(height + 1)).tolist()
    begin, end = starts.tolist(), stops.tolist()
    for row in range(1, height):
        above, here = firsts[row - 1], firsts[row]
        while above < firsts[row] and here < firsts[row + 1]:
            if begin[here] < end[above] and begin[above] < end[here]:
                one, other = sorted((root(above), root(here)))
                parent[other] = one
            if end[above] < end[here]:
                above += 1
            else:
                here += 1
    roots = [root(run) for run in range(len(parent))]
    names = {each: number for number, each in enumerate(dict.fromkeys(roots), start=1)}
    labels = np.zeros((height, width), np.intp)
    for run, row in enumerate(rows.tolist()):
        labels[row, begin[run] : end[run]] = names[roots[run]]
    return labels, len(names)
