"""What a bundle's transformer leaves out by choice: blocks, and noisy tokens."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rism.runtime.errors import InputError, one_line

_FORMS = "all, deep, to-features, a block, a range such as 0-20, every:2, or several with commas"


def choose_blocks(text: str, *, double: int, single: int, feature_block: int) -> tuple[int, ...]:
    """Return the blocks that a choice names, in the order they run.

    A choice is one or several of these, joined by commas, of which each leaves some blocks of
    those before it: "all"; "deep", the single-stream blocks; "to-features", up to the block whose
    features are read; "A" or "A-B"; "every:K", the first and each K-th after it.

    Args:
        text: the choice, such as "to-features,every:2".
        double: number of double-stream blocks, which come first.
        single: number of single-stream blocks.
        feature_block: l', counted over both.

    Raises:
        InputError: it is none of these, or leaves no block.
    """
    blocks = list(range(double + single))
    for part in text.split(","):
        match = re.fullmatch(
            r"(?P<word>all|deep|to-features)|every:(?P<step>[1-9]\d{0,3})|"
            r"(?P<low>\d{1,4})(?:-(?P<high>\d{1,4}))?",
            part.strip(),
            re.ASCII,
        )
        if match is None:
            raise InputError(f"capture blocks are '{one_line(text, limit=60)}', expected {_FORMS}")
        low, high = 0, double + single
        if match["low"]:
            low, high = int(match["low"]), int(match["high"] or match["low"]) + 1
        elif match["word"] == "deep":
            low = double
        elif match["word"] == "to-features":
            high = feature_block + 1
        blocks = [block for block in blocks if low <= block < high][:: int(match["step"] or 1)]
    if not blocks:
        raise InputError(
            f"capture blocks '{one_line(text, limit=60)}' leave none of the model's "
            f"{double + single} (0 to {double + single - 1}; single-stream ones from {double})"
        )
    return tuple(blocks)


def last_block(chosen: Sequence[int], *, double: int, feature_block: int) -> int:
    """Return the last block that has to run, for attention or for features.

    It is a single-stream one: a single step ends with the attention of such a block.
    """
    return max(*chosen, feature_block, double)


def noisy_tokens(grid_hw: tuple[int, int], step: int) -> npt.NDArray[np.int64]:
    """Return which of an image's tokens have a noisy one: (ceil(N_v / step^2),) int64.

    Those of every such row and column, row by row. Their number follows from the number of tokens
    alone, as engines need it: where the step does not divide both sides, the last of them may be
    missing.
    """
    numbers = np.arange(grid_hw[0] * grid_hw[1]).reshape(grid_hw)
    return numbers[::step, ::step].flatten()[: -(-numbers.size // step**2)]
