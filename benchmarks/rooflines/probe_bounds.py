"""Lower bounds of the probe: its arithmetic and its bytes over the rates of a card.

Counts are of one image (batch of one) over a whole forward pass. Docs: docs/probe.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.markdown import markdown_table
from benchmarks.rooflines.gpus import GPUS, GpuRates

_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True)
class ProbeShape:
    """A model at a size.

    Attributes:
        heads, dim: of the attention.
        prompt, clean: tokens; there are as many noisy ones as clean ones.
        blocks: all of them; the last has no main attention to take statistics from.
        flop: of a forward pass without capture, as `benchmarks.capture.models.count_flop` has it.
    """

    heads: int
    dim: int
    prompt: int
    clean: int
    blocks: int
    flop: float

    @property
    def keys(self) -> int:
        """Of the whole sequence."""
        return self.prompt + 2 * self.clean


SHAPES = {
    "step1x-1.0@512": ProbeShape(24, 128, 640, 1024, 57, 39.700190461952e12),
    "9b@1024": ProbeShape(32, 128, 512, 4096, 32, 156.667522056192e12),
}


@dataclass(frozen=True)
class Cost:
    """Of all blocks.

    Attributes:
        flop: multiplications and additions in products.
        exponentials: one a score.
        bytes: that must come from or go to memory at least once.
    """

    flop: float
    exponentials: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        flop, exponentials = self.flop + other.flop, self.exponentials + other.exponentials
        return Cost(flop, exponentials, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flop * times, self.exponentials * times, self.bytes * times)


def _pass(shape: ProbeShape, keys: int, *, width: int = 0, kept: int = 0) -> Cost:
    """One pass of the clean queries over so many keys.

    Args:
        shape: of the model.
        keys: visited.
        width: of the values that are multiplied on tensor cores, one set for all heads; 0 where
            rows are summed up beside them.
        kept: float32 numbers read or written for each row and head.
    """
    rows = shape.heads * shape.clean
    numbers = shape.heads * shape.dim * (shape.clean + keys)
    return Cost(
        flop=2.0 * rows * keys * (shape.dim + width),
        exponentials=float(rows * keys),
        bytes=float(numbers * _BFLOAT16 + rows * kept * _FLOAT32),
    )


def cost(shape: ProbeShape, way: str, *, weighted: int | None = None) -> Cost:
    """Count one of `WAYS`.

    Args:
        shape: of the model.
        way: which.
        weighted: prompt tokens whose weight is not zero, of use to "fused"; None for all.
    """
    weighted = shape.prompt if weighted is None else weighted
    propagation = _pass(shape, shape.clean, kept=3)
    blind = _pass(shape, shape.keys, kept=2) + propagation
    if way == "fused":
        known = _pass(shape, weighted, kept=2) + propagation
        return known * (shape.blocks - 1) + blind
    if way == "fused blind":
        return blind * shape.blocks
    # Values are padded to a head's width, and so is what comes out, in 16 bits.
    padded = {"width": shape.dim, "kept": shape.dim // 2}
    whole = _pass(shape, shape.keys, **padded) + _pass(shape, shape.clean, **padded)
    if way == "vectors":
        return whole * shape.blocks
    known = _pass(shape, shape.prompt, **padded) + _pass(shape, shape.clean, **padded)
    return known * (shape.blocks - 1) + whole


WAYS = ("vectors", "shares", "fused blind", "fused")


def floor_s(cost: Cost, gpu: GpuRates) -> float:
    """Seconds that the busiest unit needs when all of them overlap."""
    return max(
        cost.flop / gpu.bf16, cost.exponentials / gpu.exponentials, cost.bytes / gpu.bandwidth
    )


def table(weighted: int = 16) -> str:
    """Return all lower bounds as a table, the last line of a model for few weighted tokens."""
    rows = []
    for name, shape in SHAPES.items():
        costs = {way: cost(shape, way) for way in WAYS}
        costs[f"fused, {weighted} weights"] = cost(shape, "fused", weighted=weighted)
        for way, each in costs.items():
            counts = (
                f"{each.flop / 1e12:.3f}",
                f"{each.flop / shape.flop:.2%}",
                f"{each.exponentials / 1e9:.1f}",
                f"{each.bytes / 1e9:.2f}",
            )
            floors = (f"{floor_s(each, gpu) * 1e3:.2f}" for gpu in GPUS.values())
            rows.append([name, way, *counts, *floors])
    head = ("case", "way", "TFLOP", "share", "10^9 exp", "GB", *(f"{gpu} ms" for gpu in GPUS))
    return markdown_table(head, rows)
