"""Post-processing at 1,024 tokens x 3,072 features to 640 x 480, against the literal form."""

from __future__ import annotations

import numpy as np

from benchmarks.literal import literal_mask
from benchmarks.measure import peak_bytes, repeat
from rism.runtime.geometry import Plan, upsample
from rism.runtime.method import segment_tokens

GRID_HW, SIZE_WH = (32, 32), (640, 480)
TOKENS, FEATURES, BLOCKS = 1024, 3072, 57
TAU = 0.8


def run(*, runs: int = 30) -> dict[str, object]:
    """Time and memory of both forms on the same random input, and that their masks agree."""
    rng = np.random.default_rng(0)
    # A blob of tokens with features of their own, in noise: a region, not a coin toss.
    rows, columns = np.indices(GRID_HW).reshape(2, -1)
    inside = (rows - 12) ** 2 + (columns - 18) ** 2 < 36
    features = rng.standard_normal((TOKENS, FEATURES), dtype=np.float32)
    features += 2 * inside[:, None] * rng.standard_normal(FEATURES, dtype=np.float32)
    propagated = rng.uniform(0, 0.1, (BLOCKS, TOKENS)).astype(np.float32) + inside
    plan = Plan(SIZE_WH, (512, 512), (0, 0, 512, 512), GRID_HW)

    def ours() -> object:
        found = segment_tokens(propagated, propagated, features, tau=TAU)
        return upsample(found.scores.reshape(GRID_HW), plan) > 0

    def literal() -> object:
        size_hw = (SIZE_WH[1], SIZE_WH[0])
        return literal_mask(propagated, features, grid_hw=GRID_HW, size_hw=size_hw, tau=TAU)

    differ = int(np.sum(np.asarray(ours()) != np.asarray(literal())))
    fast, slow = repeat(ours, runs=runs, warm_up=3), repeat(literal, runs=2, warm_up=0)
    small, large = peak_bytes(ours), peak_bytes(literal)
    return {
        "ours": fast.to_json_dict() | {"peak_bytes": small},
        "literal": slow.to_json_dict() | {"peak_bytes": large},
        "times_faster": slow.median / fast.median,
        "times_less_memory": large / small,
        "pixels_that_differ": differ,
    }


def report(result: dict[str, dict[str, float]]) -> str:
    """A short table."""
    ours, literal = result["ours"], result["literal"]
    return "\n".join(
        [
            "post-processing, 1024 tokens x 3072 features to 640 x 480",
            f"  ours     {ours['median_s'] * 1e3:9.2f} ms  {ours['peak_bytes'] / 1e6:9.2f} MB",
            f"  literal  {literal['median_s'] * 1e3:9.2f} ms  "
            f"{literal['peak_bytes'] / 1e6:9.2f} MB",
            f"  ratio    {result['times_faster']:9.0f} x   {result['times_less_memory']:9.0f} x   "
            f"(bar: 100 x, 100 x); {result['pixels_that_differ']} pixels differ",
        ]
    )
