"""COCO's compressed run-length encoding of masks, as pycocotools writes it.

Runs alternate between 0 and 1, beginning with 0, in column-major order. From the fourth
on, each is stored as its difference from the run two before it; each number is written
in groups of five bits, lowest first, as the characters from "0" (48) on, where bit 5 says
that another group follows and bit 4 of the last group is the sign.
"""

from typing import Any

import numpy as np

from rism.runtime.arrays import BoolArray, Int64
from rism.runtime.errors import InputError

_OFFSET = 48
_MORE = 0x20
_SIGN = 0x10
_BITS = 5
_MAX_GROUPS = 12  # 60 bits: more than any image's pixel count


def encode_rle(mask_hw: BoolArray) -> str:
    """Encode a mask (H, W) bool as COCO's `counts` string.

    >>> encode_rle(np.array([[False, True], [False, True]]))
    '22'
    """
    return _pack(_runs(mask_hw))


def coco_rle(mask_hw: BoolArray) -> dict[str, Any]:
    """Return a mask (H, W) bool as COCO's compressed RLE: its size [H, W] and its `counts`."""
    return {"size": list(mask_hw.shape), "counts": encode_rle(mask_hw)}


def decode_rle(counts: str, size_hw: tuple[int, int]) -> BoolArray:
    """Decode COCO's `counts` string into a mask (H, W) bool.

    Raises:
        InputError: the string is not such an encoding, or not of this size.
    """
    height, width = size_hw
    runs = _unpack(counts)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise InputError(f"the RLE string does not describe a mask of {height} x {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _runs(mask_hw: BoolArray) -> Int64:
    """Lengths of the runs of 0, 1, 0, ... in column-major order; the first may be 0."""
    flat = np.asarray(mask_hw, dtype=bool).ravel(order="F")
    if flat.size == 0:
        return np.zeros(1, np.int64)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts_with_one = [0] if flat[0] else []
    edges = np.concatenate([[0], starts_with_one, changes, [flat.size]])
    return np.diff(edges).astype(np.int64)


def _pack(runs: Int64) -> str:
    """Write the runs as characters, all of one group at a time."""
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    characters = np.zeros((len(rest), _MAX_GROUPS), np.uint8)
    written = np.zeros(characters.shape, bool)
    open_ = np.ones(len(rest), bool)
    for group in range(_MAX_GROUPS):
        bits = rest & (_MORE - 1)
        rest >>= _BITS
        more = np.where(bits & _SIGN, rest != -1, rest != 0)
        characters[:, group] = bits + _MORE * more + _OFFSET
        written[:, group] = open_
        open_ = open_ & more
        if not open_.any():
            break
    return characters[written].tobytes().decode("ascii")


def _unpack(counts: str) -> Int64:
    """Read the runs back from the characters."""
    try:
        groups = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - _OFFSET
    except UnicodeEncodeError as error:
        raise InputError("an RLE string has ASCII characters only") from error
    more = (groups & _MORE) != 0
    if groups.size == 0 or groups.min() < 0 or groups.max() >= 2 * _MORE or more[-1]:
        raise InputError("the RLE string is cut off or has characters that RLE never writes")
    starts = np.flatnonzero(np.concatenate([[True], ~more[:-1]]))
    lengths = np.diff(np.concatenate([starts, [groups.size]]))
    if int(lengths.max()) > _MAX_GROUPS:
        raise InputError("the RLE string has a number larger than any image")
    place = np.arange(groups.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((groups & (_MORE - 1)) << (_BITS * place), starts)
    negative = (groups[starts + lengths - 1] & _SIGN) != 0
    numbers -= negative.astype(np.int64) << (_BITS * lengths)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
