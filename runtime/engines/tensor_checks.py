"""Fixed batch sizes of graphs, and the shapes of what they return."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rism.runtime.arrays import Array
from rism.runtime.bundle.graph_spec import TensorSpec
from rism.runtime.errors import BundleError

MAX_FIXED_BATCH = 256


def fixed_batch(inputs: Mapping[str, TensorSpec], name: str) -> int | None:
    """Return the batch size a graph was exported for, or None where it is free.

    Raises:
        BundleError: more than a batch could sensibly be filled up to.
    """
    shape = inputs[name].shape if name in inputs else ()
    size = shape[0] if shape else None
    if not isinstance(size, int):
        return None
    if size > MAX_FIXED_BATCH:
        raise BundleError(
            f"input '{name}' has a fixed batch of {size}, expected at most {MAX_FIXED_BATCH}: "
            "export the bundle again"
        )
    return size


def repeat_last(rows: Array, count: int | None) -> Array:
    """Fill a batch up to a graph's fixed size with its last row; None leaves it as it is."""
    surplus = 0 if count is None else count - len(rows)
    return rows if surplus <= 0 else np.concatenate([rows, np.repeat(rows[-1:], surplus, axis=0)])


def expect_shape(array: Any, shape: tuple[int, ...], *, name: str) -> None:
    """Refuse an array that is not of the shape the bundle's geometry says."""
    if array.shape != shape:
        raise BundleError(
            f"the graph returned '{name}' of shape {array.shape}, expected {shape}: "
            "export the bundle again"
        )
