"""Reading what a transformer graph returned, by capture mode."""

from collections.abc import Mapping

import numpy as np

from rism.runtime.engines.base import Arrays
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.method.equations import (
    FEATURES_NOT_FINITE,
    Array,
    Localisation,
    array_namespace,
    degenerate_reason,
    propagate,
    segment_tokens,
)

__all__ = ["expect_outputs", "localise_outputs"]


def localise_outputs(
    capture: str, outputs: Arrays, *, tau: float, prototype: str, prior: Array | None = None
) -> Localisation:
    """Apply the method, or read its result where the graph has it inside.

    Args:
        capture: a capture mode.
        outputs: of one expression, by logical name, float32; of NumPy or of CuPy.
        tau: region threshold.
        prototype: see `method.prototypes`.
        prior: see `segment_tokens`; not of "scores", whose graph holds the threshold.
    """
    if capture == "scores":
        scores, refined = outputs["scores"], outputs["refined_attention"]
        coarse, fisher = outputs["coarse_attention"], float(outputs["separability"])
        xp = array_namespace(scores)
        reason = degenerate_reason(refined)
        if reason is None and not bool(xp.isfinite(scores).all()):
            reason = FEATURES_NOT_FINITE
        if reason is not None:
            finite = xp.nan_to_num(coarse), xp.nan_to_num(refined)
            return Localisation(xp.zeros_like(scores), *finite, 0.0, reason)
        return Localisation(scores, coarse, refined, fisher if np.isfinite(fisher) else 0.0)
    vectors = outputs["attention_vectors"]
    if capture == "matrices":
        propagated = propagate(outputs["transition_matrices"], vectors)
    else:
        propagated = outputs["propagated_vectors"]
    features = outputs["features"]
    return segment_tokens(vectors, propagated, features, tau=tau, rule=prototype, prior=prior)


def expect_outputs(capture: str, outputs: Mapping[str, Array], *, batch: int, tokens: int) -> None:
    """Refuse outputs that are not of the shapes of docs/bundle.md, step 5.

    Args:
        capture: a capture mode.
        outputs: by logical name, with the axis of the batch.
        batch: B.
        tokens: N_v.

    Raises:
        BundleError: an output has another shape.
    """
    one = (batch, tokens)
    shapes: dict[str, tuple[int, ...]]
    if capture == "scores":
        shapes = {"scores": one, "coarse_attention": one, "refined_attention": one}
        shapes["separability"] = (batch,)
    else:
        # Any number of blocks and of channels, but one at least.
        blocks = max((1, *outputs["attention_vectors"].shape[1:2]))
        channels = max((1, *outputs["features"].shape[2:3]))
        shapes = {"features": (*one, channels), "attention_vectors": (batch, blocks, tokens)}
        if capture == "matrices":
            shapes["transition_matrices"] = (batch, blocks, tokens, tokens)
        else:
            shapes["propagated_vectors"] = (batch, blocks, tokens)
    for name, shape in shapes.items():
        expect_shape(outputs[name], shape, name=name)
