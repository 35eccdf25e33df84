"""Rounding weights to integers of 4 or 8 bits in blocks, each block with a scale in float16.

A block is a run of numbers along a row of a linear layer's weight (out, in), so rows are rounded
independently of each other, and a weight can be read and rounded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

BITS = {"int4": 4, "int8": 8}
BLOCKS = (16, 32, 64, 128, 256)
DEFAULT_BLOCK = 32

# About what a core's cache holds, in float32.
_PIECE_NUMBERS = 2**17
# A scale below this would lose digits in float16.
_SMALLEST_SCALE = 2.0**-14


@dataclass(frozen=True)
class BlockRounding:
    """How one weight is rounded.

    A number w of a block with scale s becomes q = round(w / s), from -2^(bits - 1) to
    2^(bits - 1) - 1, and stands for q s. Of 4 bits scales may be negative: then the lowest integer,
    which has no opposite, stands for the largest number. TensorRT takes no such scales of 8 bits.

    Attributes:
        bits: 4 or 8.
        block: numbers in a block, a divisor of the row's length.
    """

    bits: int
    block: int

    @property
    def lowest(self) -> int:
        """The lowest integer; the highest is one less than its opposite."""
        return -(1 << (self.bits - 1))

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the shape of the scales of a weight (out, in)."""
        return shape[0], shape[1] // self.block

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of a weight (out, in): integers and scales."""
        return math.prod(shape) * self.bits // 8 + 2 * math.prod(self.scales_shape(shape))

    def quantise(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round rows of a weight.

        Args:
            rows: (N, K) of any float type.

        Returns:
            int8 (N, K), and scales, float16 (N, K / block).
        """
        blocks = rows.float().reshape(-1, self.block)
        step = max(1, _PIECE_NUMBERS // self.block)
        found = [self._piece(piece) for piece in torch.split(blocks, step)]
        integers, scales = (torch.cat(parts) for parts in zip(*found, strict=True))
        return integers.reshape(rows.shape), scales.reshape(self.scales_shape(rows.shape))

    def dequantise(self, integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return what the integers stand for: float32 (N, K)."""
        blocks = integers.reshape(-1, self.block).float() * scales.reshape(-1, 1).float()
        return blocks.reshape(integers.shape)

    def round(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows with every number rounded: float32 (N, K)."""
        return self.dequantise(*self.quantise(rows))

    def pack(self, integers: torch.Tensor) -> torch.Tensor:
        """Return the bytes that are stored; of 4 bits the earlier number is the lower half."""
        if self.bits == 8:
            return integers.contiguous()
        raw = integers.view(torch.uint8) & 15
        return raw[:, 0::2] | (raw[:, 1::2] << 4)

    def _piece(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round blocks (M, block) in float32."""
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        highest = -self.lowest - 1
        scales = largest.abs() / highest if self.bits == 8 else largest / self.lowest
        scales = scales.half().float()
        small = scales.abs() < _SMALLEST_SCALE
        scales = torch.where(small, _SMALLEST_SCALE, scales)
        integers = (blocks / scales).round_().clamp_(self.lowest, highest)
        return integers.to(torch.int8), scales.half()


def fitting_block(width: int, asked: int) -> int | None:
    """Return the largest block up to the one asked for that divides a row's length, if any does."""
    return next((b for b in reversed(BLOCKS) if b <= asked and width % b == 0), None)
