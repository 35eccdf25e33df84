"""Rounding weights to integers of 4 or 8 bits in blocks, each block with a scale in float16.

A block is a run of numbers along a row of a linear layer's weight (out, in), so rows are rounded
independently of each other, and a weight can be read and rounded a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch

BITS = {"int4": 4, "int8": 8}
BLOCKS = (16, 32, 64, 128, 256)
DEFAULT_BLOCK = 32

# About what a core's cache holds, in float32.
_PIECE_NUMBERS = 2**19
# What the largest number of a block stands for, tried in turn: beyond the lowest integer it is cut
# off, and the others get finer steps.
_TARGETS = {4: (-7.2, -7.8, -8.4, -9.0, -9.8), 8: (127.0, 132.0, 140.0)}
# A scale below this would lose digits in float16.
_SMALLEST_SCALE = 2.0**-14


@dataclass(frozen=True)
class BlockRounding:
    """How one weight is rounded.

    The scale of a block is searched: the one with the smallest sum of squared errors, each weighted
    by the mean square of what it is multiplied with. A number w of a block with scale s becomes
    q = round(w / s), from -2^(bits - 1) to 2^(bits - 1) - 1, and stands for q s. Of 4 bits scales
    may be negative: then the lowest integer, which has no opposite, stands for the largest number.
    TensorRT takes no such scales of 8 bits.

    With `moments` the numbers of a group are rounded one after the other, and what rounding adds is
    taken from those that follow, as far as they are multiplied with the same (GPTQ, Frantar et al.
    2023, within groups).

    Attributes:
        bits: 4 or 8.
        block: numbers in a block, a divisor of the row's length.
        moments: means of x_i x_j within groups of G neighbouring places of what a row is
            multiplied with, float32 (K / G, G, G). None where all places count the same.
    """

    bits: int
    block: int
    moments: torch.Tensor | None = field(default=None, compare=False, repr=False)

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
        integers, scales, _ = self.quantise_measured(rows)
        return integers, scales

    def quantise_measured(
        self, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
        """Round rows of a weight, and return the sums of squares of the errors and of the rows."""
        width, found, squares = rows.shape[1], [], [0.0, 0.0]
        with _one_thread():
            for piece in torch.split(rows, max(1, _PIECE_NUMBERS // width)):
                blocks = piece.float().reshape(-1, self.block)
                integers, scales = self._piece(blocks, width)
                found.append((integers, scales))
                squares[0] += float((integers * scales.float()).sub_(blocks).square_().sum())
                squares[1] += float(blocks.square().sum())
        integers, scales = (torch.cat(parts) for parts in zip(*found, strict=True))
        shapes = rows.shape, self.scales_shape(rows.shape)
        return integers.reshape(shapes[0]), scales.reshape(shapes[1]), (squares[0], squares[1])

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

    @cached_property
    def _damped(self) -> torch.Tensor | None:
        """The moments with a little more on the diagonal, for channels that were never seen."""
        if self.moments is None:
            return None
        squares = self.moments.diagonal(dim1=1, dim2=2)
        added = squares.mean(1, keepdim=True) * 1e-2 + squares.mean() * 1e-3 + 1e-30
        return self.moments + torch.diag_embed(added.expand_as(squares))

    @cached_property
    def _feedback(self) -> torch.Tensor:
        """The upper Cholesky factor U of the inverse of each group's moments, (G, G, K / G)."""
        assert self._damped is not None
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._damped.double()))
        upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
        return upper.float().permute(1, 2, 0).contiguous()

    def _piece(self, blocks: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Round blocks (M, block) in float32, of rows of a width."""
        importance = None
        if self._damped is not None:
            importance = self._damped.diagonal(dim1=1, dim2=2).reshape(-1)
            importance = importance.expand(len(blocks) * self.block // width, width)
            importance = importance.reshape(-1, self.block)
        scales = self._scales(blocks, importance).half().float()
        small = scales.abs() < _SMALLEST_SCALE
        scales = torch.where(small, _SMALLEST_SCALE, scales)
        if importance is None:
            integers = (blocks / scales).round_().clamp_(self.lowest, -self.lowest - 1)
        else:
            integers = self._in_turn(blocks, scales, width)
        return integers.to(torch.int8), scales.half()

    def _in_turn(self, blocks: torch.Tensor, scales: torch.Tensor, width: int) -> torch.Tensor:
        """Round the numbers of each group one after the other.

        Of a number w_i that becomes q_i, the error e = (w_i - q_i) / U_ii is taken from those that
        follow: w_j - e U_ij.
        """
        feedback = self._feedback
        size = len(feedback)

        def by_place(rows: torch.Tensor) -> torch.Tensor:
            return rows.reshape(-1, width // size, size).permute(2, 0, 1).contiguous()

        rest, steps = by_place(blocks), by_place(scales.expand_as(blocks))
        made = torch.empty_like(rest)
        for at in range(size):
            made[at] = (rest[at] / steps[at]).round_().clamp_(self.lowest, -self.lowest - 1)
            error = (rest[at] - made[at] * steps[at]).div_(feedback[at, at])
            rest[at + 1 :].addcmul_(error, feedback[at, at + 1 :, None], value=-1)
        return made.permute(1, 2, 0).reshape(blocks.shape)

    def _scales(self, blocks: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """Find the scales (M, 1) of the smallest weighted sum of squared errors.

        For each number that the largest of a block may stand for there is a rounding q and its
        best scale, sum h w q / sum h q^2; the error is smallest where (sum h w q)^2 / sum h q^2 is
        largest.
        """
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        if self.bits == 8:
            largest = largest.abs()
        weighted = blocks if importance is None else blocks * importance
        best = torch.zeros_like(largest)
        scales = torch.zeros_like(largest)
        for target in _TARGETS[self.bits]:
            integers = blocks * (target / largest)
            integers = integers.round_().clamp_(self.lowest, -self.lowest - 1)
            product = (weighted * integers).sum(1, keepdim=True)
            squares = integers.square_() if importance is None else integers.square_() * importance
            power = squares.sum(1, keepdim=True)
            gain = product * product / power
            better = gain > best  # never where a block is empty, and gain no number
            best = torch.where(better, gain, best)
            scales = torch.where(better, product / power, scales)
        return scales


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: many small operations wait for each other on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitting_block(width: int, asked: int) -> int | None:
    """Return the largest block up to the one asked for that divides a row's length, if any does."""
    return next((b for b in reversed(BLOCKS) if b <= asked and width % b == 0), None)
