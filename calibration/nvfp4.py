"""NVFP4: numbers of 4 bits (E2M1) in blocks of 16, with two levels of scales.

A number e of a block with the scale s (E4M3) in a tensor with the scale g (float32) stands for
e s g. E2M1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their opposites. A block's scale is at most 448, so
g = max|x| / (6 * 448) lets the largest number of a tensor be 6 in its block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from rism.calibration.e4m3 import E4M3_MAX, SMALLEST_SCALE, Float32

BLOCK = 16
E2M1_MAX = 6.0
# What the largest number of a block may become, tried in turn: with 4 the numbers from 4 to 6 have
# finer steps, with 6 the block has more of them. The smaller squared error counts.
_TARGETS = (6.0, 4.0)
_PIECE = 2**22


@dataclass(frozen=True)
class Nvfp4Weight:
    """A two-dimensional weight.

    Attributes:
        numbers: float4_e2m1fn, of the weight's shape.
        scales: float8_e4m3fn, one for each block of 16 along `axis`.
        tensor_scale: one for all.
        axis: along which a block lies.
    """

    numbers: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    tensor_scale: np.float32
    axis: int

    def values(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return what it stands for, of a type in which an engine multiplies the scales."""
        scales = (self.scales.astype(np.float32) * self.tensor_scale).astype(dtype)
        wide = np.repeat(scales, BLOCK, axis=self.axis).astype(np.float32)
        return (self.numbers.astype(np.float32) * wide).astype(dtype)

    def packed(self) -> npt.NDArray[np.uint8]:
        """Return the bytes that ONNX stores: of two numbers, the first is the lower half."""
        codes: npt.NDArray[np.uint8] = self.numbers.view(np.uint8).reshape(-1)
        return np.bitwise_or(codes[0::2], np.left_shift(codes[1::2], 4), dtype=np.uint8)


def quantised_weight(weight: npt.NDArray[Any], axis: int) -> Nvfp4Weight:
    """Round a weight to NVFP4.

    Args:
        weight: two-dimensional, of any float type, read in pieces; along `axis` its size is a
            multiple of 16.
        axis: of what is summed in the product.
    """
    largest = max(float(np.abs(piece).max()) for _, piece in _pieces(weight))
    tensor_scale = tensor_scale_of(largest)
    shape = list(weight.shape)
    shape[axis] //= BLOCK
    numbers = np.empty(weight.shape, ml_dtypes.float4_e2m1fn)
    scales = np.empty(shape, ml_dtypes.float8_e4m3fn)
    for rows, piece in _pieces(weight):
        few = slice(rows.start // BLOCK, -(-rows.stop // BLOCK)) if axis == 0 else rows
        numbers[rows], scales[few] = _rounded(piece, axis, tensor_scale)
    return Nvfp4Weight(numbers, scales, tensor_scale, axis)


def tensor_scale_of(largest: float) -> np.float32:
    """Return g for a tensor whose largest magnitude is given; 1 for one of zeros."""
    scale = np.float32(largest / (E2M1_MAX * E4M3_MAX))
    return scale if scale >= SMALLEST_SCALE else np.float32(1)


def round_trip(values: npt.NDArray[Any], tensor_scale: np.float32) -> Float32:
    """Return what is left of activations whose blocks lie along the last axis: float32.

    An engine finds the scales of their blocks in each run: the largest number of a block becomes
    6. Blocks beyond what `tensor_scale` was made for are cut off.
    """
    blocks = np.asarray(values, np.float32).reshape(*values.shape[:-1], -1, BLOCK)
    numbers, scales, _ = _to_target(blocks, tensor_scale, E2M1_MAX)
    found: Float32 = numbers.astype(np.float32) * (scales.astype(np.float32) * tensor_scale)
    return found.reshape(values.shape)


def _rounded(
    piece: Float32, axis: int, tensor_scale: np.float32
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Round a piece; each block has the better one of two scales."""
    blocks = np.moveaxis(piece, axis, -1)
    blocks = blocks.reshape(len(blocks), -1, BLOCK)
    (numbers, scales, error), *others = (_to_target(blocks, tensor_scale, x) for x in _TARGETS)
    for other, other_scales, other_error in others:
        better = other_error < error
        numbers, scales = np.where(better, other, numbers), np.where(better, other_scales, scales)
        error = np.minimum(error, other_error)
    numbers = numbers.reshape(len(blocks), -1)
    return np.moveaxis(numbers, -1, axis), np.moveaxis(scales[..., 0], -1, axis)


def _to_target(
    blocks: Float32, tensor_scale: np.float32, target: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Float32]:
    """Let the largest number of each block (..., 16) become `target`.

    Returns:
        numbers, float4_e2m1fn, like `blocks`; scales, float8_e4m3fn (..., 1); and sums of squared
        errors (..., 1).
    """
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    wanted = largest / np.float32(target) / tensor_scale
    scales = np.clip(wanted, 0, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    wide = scales.astype(np.float32) * tensor_scale
    divided = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0)
    numbers = np.clip(divided, -E2M1_MAX, E2M1_MAX).astype(ml_dtypes.float4_e2m1fn)
    error = np.square(numbers.astype(np.float32) * wide - blocks).sum(axis=-1, keepdims=True)
    return numbers, scales, error


def _pieces(weight: npt.NDArray[Any]) -> Iterator[tuple[slice, Float32]]:
    """Runs of rows as float32, a multiple of 16 of them but for the last."""
    rows = max(1, _PIECE // max(weight.shape[1], 1) // BLOCK) * BLOCK
    for first in range(0, len(weight), rows):
        run = slice(first, min(first + rows, len(weight)))
        yield run, np.asarray(weight[run], np.float32)
