"""Label Studio's run-length encoding of brush masks, the format of @thi.ng/rle-pack.

A head of 53 bits: the number of values (32), the bits of a value less 1 (5), and four sizes of a
run's length, each less 1 (4 x 4). Then runs: 1, which size (2), the length less 1, the value (8).
Values are those of an RGBA image, row by row.
"""

import numpy as np

from rism.runtime.arrays import BoolArray, Int64, Uint8

_SIZES = np.array([3, 4, 8, 16])
_LONGEST_RUN = 2**16
_VALUE_BITS = 8
_CHANNELS = 4


def encode_brush_rle(mask_hw: BoolArray) -> Uint8:
    """Encode a mask (H, W) bool; all channels are 255 where it is, and 0 elsewhere.

    >>> encode_brush_rle(np.array([[False, True]])).tolist()
    [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    """
    flat = np.asarray(mask_hw, bool).ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    lengths, values = _cut(np.diff(edges) * _CHANNELS, flat[edges[:-1]])
    kinds = np.searchsorted(2**_SIZES, lengths)
    sizes = _SIZES[kinds]
    codes = ((4 + kinds) << sizes | lengths - 1) << _VALUE_BITS | values * 255
    head = [(flat.size * _CHANNELS, 32), (_VALUE_BITS - 1, 5), *((size - 1, 4) for size in _SIZES)]
    numbers, widths = (np.array(each, np.int64) for each in zip(*head, strict=True))
    bits = _bits(
        np.concatenate([numbers, codes]), np.concatenate([widths, 3 + sizes + _VALUE_BITS])
    )
    return np.packbits(bits)


def _cut(lengths: Int64, values: BoolArray) -> tuple[Int64, Int64]:
    """Cut runs so that none is too long; return lengths and values 0 or 1."""
    parts = -(-lengths // _LONGEST_RUN)
    cut = np.full(int(parts.sum()), _LONGEST_RUN, np.int64)
    cut[np.cumsum(parts) - 1] = lengths - (parts - 1) * _LONGEST_RUN
    return cut, np.repeat(values.astype(np.int64), parts)


def _bits(numbers: Int64, widths: Int64) -> BoolArray:
    """Return the numbers' bits one after the other, highest first, each of its own width."""
    columns = np.arange(int(widths.max()))
    shifts = widths[:, None] - 1 - columns
    bits = (numbers[:, None] >> np.maximum(shifts, 0)) & 1
    found: BoolArray = bits[shifts >= 0].astype(bool)
    return found
