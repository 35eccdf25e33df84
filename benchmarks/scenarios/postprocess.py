"""Post-processing on the host: ours against the paper's literal form on the same random input."""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.baselines.literal_mask import literal_mask
from benchmarks.harness.checks import same_masks
from benchmarks.harness.rows import Row, Task, image_size, time_ways
from benchmarks.scenarios.postprocess_gpu import Float32, draw_outputs
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens
from rism.runtime.method.upsampling import upsample

LITERAL, OURS = "literal, PyTorch", "rism"
# A pixel at the very boundary may fall on either side of zero.
_TOLERANCE = 1e-3
_TAU = 0.8


def measure(task: Task) -> Iterator[Row]:
    """Measure every grid with every number of blocks; each is a group."""
    size, features = image_size(task["size"]), task["features"]
    for grid, blocks in itertools.product(task["grids"], task["blocks"]):
        grid_hw = image_size(grid)
        group = f"{grid} tokens, {blocks} blocks"
        yield from _both(task, group, draw_outputs(grid_hw, features, blocks), grid_hw, size)


def _both(
    task: Task,
    group: str,
    drawn: tuple[Float32, Float32],
    grid_hw: tuple[int, int],
    size_wh: tuple[int, int],
) -> list[Row]:
    propagated, features = drawn
    resized = (16 * grid_hw[1], 16 * grid_hw[0])
    plan = Plan(size_wh, resized, (0, 0, *resized), grid_hw)

    def ours() -> npt.NDArray[np.bool_]:
        found = segment_tokens(propagated, propagated, features, tau=_TAU)
        mask: npt.NDArray[np.bool_] = upsample(found.scores.reshape(grid_hw), plan) > 0
        return mask

    def literal() -> npt.NDArray[np.bool_]:
        size_hw = (size_wh[1], size_wh[0])
        return literal_mask(propagated, features, grid_hw=grid_hw, size_hw=size_hw, tau=_TAU)

    share = same_masks(OURS, ours(), literal(), _TOLERANCE)
    ways = {LITERAL: literal, OURS: ours}
    return time_ways(task, ways, group=group, pixels_that_differ=share)
