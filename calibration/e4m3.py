"""FP8 numbers with four bits of exponent and three of mantissa, as ONNX and the GPUs have them.

E4M3FN: no infinities, largest number 448, smallest normal 2^-6, smallest of all 2^-9.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

E4M3_MAX = 448.0
Float32: TypeAlias = npt.NDArray[np.float32]
# Of a scale: below it its inverse would be infinite in single precision.
SMALLEST_SCALE = 1e-30
_PIECE = 2**22


def quantised(values: npt.NDArray[Any], scale: Float32 | float) -> npt.NDArray[Any]:
    """Divide by the scale and round: `QuantizeLinear` with saturation.

    Args:
        values: any shape; computed in float32.
        scale: one, or one that broadcasts against `values`.

    Returns:
        float8_e4m3fn: to the nearest, halves to the even one, beyond 448 to 448.
    """
    divided = np.asarray(values, np.float32) / np.asarray(scale, np.float32)
    saturated: npt.NDArray[Any] = np.clip(divided, -E4M3_MAX, E4M3_MAX)
    return saturated.astype(ml_dtypes.float8_e4m3fn)


def round_trip(values: npt.NDArray[Any], scale: Float32 | float) -> Float32:
    """Return what is left of values after `QuantizeLinear` and `DequantizeLinear`: float32."""
    back: Float32 = quantised(values, scale).astype(np.float32) * np.asarray(scale, np.float32)
    return back


def channel_scales(weight: npt.NDArray[Any], axis: int) -> Float32:
    """Scales that bring the largest weight of each output channel to 448.

    Args:
        weight: two-dimensional, any float type; it is read in pieces.
        axis: of the output channels.

    Returns:
        (channels,) float32; 1 for a channel of zeros.
    """
    largest = np.zeros(weight.shape[axis], np.float32)
    for rows, piece in _pieces(weight):
        found = np.abs(piece).max(axis=1 - axis)
        part = largest[rows] if axis == 0 else largest
        np.maximum(part, found, out=part)
    scales: Float32 = largest / np.float32(E4M3_MAX)
    return np.where(scales < SMALLEST_SCALE, np.float32(1), scales)


def weight_error(weight: npt.NDArray[Any], scales: Float32, axis: int) -> float:
    """Return the root mean square of what rounding changes over that of the weight."""
    noise = power = 0.0
    for rows, piece in _pieces(weight):
        own = scales[rows, None] if axis == 0 else scales
        noise += float(np.square(round_trip(piece, own) - piece, dtype=np.float64).sum())
        power += float(np.square(piece, dtype=np.float64).sum())
    return float(np.sqrt(noise / power)) if power else 0.0


def quantised_weight(weight: npt.NDArray[Any], scales: Float32, axis: int) -> npt.NDArray[Any]:
    """Return a two-dimensional weight as float8_e4m3fn, by its channels' scales."""
    out = np.empty(weight.shape, ml_dtypes.float8_e4m3fn)
    for rows, piece in _pieces(weight):
        out[rows] = quantised(piece, scales[rows, None] if axis == 0 else scales)
    return out


def _pieces(weight: npt.NDArray[Any]) -> Iterator[tuple[slice, Float32]]:
    """Runs of rows as float32: a large weight is never widened as a whole."""
    rows = max(1, _PIECE // max(weight.shape[1], 1))
    for first in range(0, len(weight), rows):
        run = slice(first, first + rows)
        yield run, np.asarray(weight[run], np.float32)
