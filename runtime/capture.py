"""Reading what a transformer graph returned, by capture mode."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rism.runtime.engines import Arrays
from rism.runtime.errors import BundleError
from rism.runtime.manifest import TensorSpec
from rism.runtime.method import Localisation, degenerate_reason, propagate, segment_tokens

__all__ = ["expect_shape", "fixed_batch", "localise_outputs"]


def localise_outputs(capture: str, outputs: Arrays, *, tau: float, prototype: str) -> Localisation:
    """Apply the method, or read its result where the graph has it inside."""
    if capture == "scores":
        scores, refined = outputs["scores"], outputs["refined_attention"]
        coarse, fisher = outputs["coarse_attention"], float(outputs["separability"])
        reason = degenerate_reason(refined)
        if reason is None and not np.isfinite(scores).all():
            reason = "the features are not finite"
        if reason is not None:
            finite = np.nan_to_num(coarse), np.nan_to_num(refined)
            return Localisation(np.zeros_like(scores), *finite, 0.0, reason)
        return Localisation(scores, coarse, refined, fisher if np.isfinite(fisher) else 0.0)
    vectors = outputs["attention_vectors"]
    if capture == "matrices":
        propagated = propagate(outputs["transition_matrices"], vectors)
    else:
        propagated = outputs["propagated_vectors"]
    return segment_tokens(vectors, propagated, outputs["features"], tau=tau, rule=prototype)


def fixed_batch(inputs: Mapping[str, TensorSpec], name: str) -> int:
    """Return the batch size a graph was exported for, or a large number where it is free."""
    size = inputs[name].shape[0] if name in inputs and inputs[name].shape else "batch"
    if not isinstance(size, int):
        return 2**20
    if size != 1:
        raise BundleError(
            f"input '{name}' has a fixed batch of {size}, expected 1 or a named dimension: "
            "export the bundle again"
        )
    return 1


def expect_shape(array: npt.NDArray[Any], shape: tuple[int, ...], *, name: str) -> None:
    """Refuse an array that is not of the shape the bundle's geometry says."""
    if array.shape != shape:
        raise BundleError(
            f"the graph returned '{name}' of shape {array.shape}, expected {shape}: "
            "export the bundle again"
        )
