"""Whether two ways of computing agree; asked before either is timed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.errors import DiffersError
from rism.runtime.method.equations import segment_tokens

Arrays = Mapping[str, npt.NDArray[Any]]


def same_masks(
    name: str, found: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_], tolerance: float
) -> float:
    """Compare two masks, and return the share of pixels that differ, at most `tolerance`.

    Raises:
        DiffersError: more do.
    """
    share = float((found != wanted).mean()) if found.shape == wanted.shape else 1.0
    if share > tolerance:
        raise DiffersError(
            f"the mask of '{name}' differs from the baseline's in {share:.2%} of its pixels, "
            f"expected at most {tolerance:.2%}: its time means nothing"
        )
    return share


def same_values(
    name: str, found: npt.NDArray[Any], wanted: npt.NDArray[Any], tolerance: float
) -> float:
    """Compare two arrays, and return the largest difference over the largest wanted value.

    The tolerance is of that ratio; more is an error, as in `same_masks`.
    """
    error = float("inf")
    if found.shape == wanted.shape and np.isfinite(found).all():
        error = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))
    if error > tolerance:
        raise DiffersError(
            f"'{name}' differs from the baseline by {error:.2e} of its largest value, expected at "
            f"most {tolerance:.0e}: its time means nothing"
        )
    return error


def same_outputs(
    name: str,
    found: Arrays,
    wanted: Arrays,
    *,
    tolerance: float,
    mask_tolerance: float,
    tau: float = 0.8,
) -> None:
    """Compare a transformer's outputs, and the masks that the method makes of them.

    Args:
        name: of the way that is compared.
        found: outputs of capture mode `vectors` by their names, a batch of one.
        wanted: likewise, of the baseline; what only one of them has is not compared.
        tolerance: of each output, see `same_values`.
        mask_tolerance: share of tokens that may be on the other side.
        tau: region threshold.

    Raises:
        DiffersError: they do not agree.
    """
    for output, value in wanted.items():
        if output in found:
            same_values(f"{name}: {output}", found[output], value, tolerance)
    if set(wanted) <= set(found):
        masks = [
            segment_tokens(
                each["attention_vectors"][0],
                each["propagated_vectors"][0],
                each["features"][0],
                tau=tau,
            ).scores
            > 0
            for each in (found, wanted)
        ]
        same_masks(name, masks[0], masks[1], mask_tolerance)
