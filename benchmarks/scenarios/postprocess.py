"""Post-processing on the host: ours against the paper's literal form on the same random input."""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.baselines.literal_mask import literal_mask
from benchmarks.harness.checks import same_masks
from benchmarks.harness.rows import Row, Task, image_size, time_ways
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens
from rism.runtime.method.upsampling import upsample

LITERAL, OURS = "literal, PyTorch", "rism"
# A pixel at the very boundary may fall on either side of zero.
_TOLERANCE = 1e-3
_TAU = 0.8

Float32 = npt.NDArray[np.float32]


def measure(task: Task) -> Iterator[Row]:
    """Measure every grid with every number of blocks; each is a group."""
    size, features = image_size(task["size"]), task["features"]
    for grid, blocks in itertools.product(task["grids"], task["blocks"]):
        grid_hw = image_size(grid)
        group = f"{grid} tokens, {blocks} blocks"
        yield from _both(task, group, _draw(grid_hw, features, blocks), grid_hw, size)


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


def _draw(grid_hw: tuple[int, int], features: int, blocks: int) -> tuple[Float32, Float32]:
    """A blob of tokens with features of their own, in noise: a region, not a coin toss."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(grid_hw).reshape(2, -1)
    high, wide = grid_hw
    far = ((rows - 0.4 * high) / high) ** 2 + ((columns - 0.55 * wide) / wide) ** 2
    inside = far < 0.2**2
    drawn = rng.standard_normal((len(rows), features), dtype=np.float32)
    drawn += 2 * inside[:, None] * rng.standard_normal(features, dtype=np.float32)
    propagated = rng.uniform(0, 0.1, (blocks, len(rows))).astype(np.float32) + inside
    return propagated.astype(np.float32), drawn
