"""What tests of Step1X-Edit share: small random checkpoints, and something to look at."""

import numpy as np

from benchmarks.synthetic.step1x_small import make_step1x, open_step1x

__all__ = ["VERSIONS", "make_step1x", "open_step1x", "picture"]

VERSIONS = ("1.0", "1.1", "1.2")


def picture(width: int, height: int) -> np.ndarray:
    """Blocks of colour: (H, W, 3) uint8."""
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    return np.ascontiguousarray(coarse[rows][:, columns])
