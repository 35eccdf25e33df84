"""From the outputs of a transformer graph to masks, with NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from rism.runtime.arrays import Array, BoolArray, Float32, Uint8
from rism.runtime.bundle.confidence_rule import Evidence
from rism.runtime.engines.base import Arrays
from rism.runtime.engines.tensor_checks import expect_shape
from rism.runtime.expression.spatial_words import Cues
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import (
    FEATURES_NOT_FINITE,
    Localisation,
    degenerate_reason,
    propagate,
    segment_tokens,
)
from rism.runtime.method.instances import one_instance, spatial_prior
from rism.runtime.method.upsampling import guided_upsample, upsample
from rism.runtime.options import ResolvedOptions


@dataclass(frozen=True)
class PostprocessRequest:
    """How the outputs of one run of a transformer graph are to be processed.

    Attributes:
        capture: the capture mode of the graph.
        batch: B, rows of the outputs.
        plan: how the image was brought to the model's grid.
        cues: words of place and size of each expression; rows beyond them fill up a fixed batch.
        options: see `ResolvedOptions`.
        guide: (H, W, 3) uint8, the image, for upsample "guided"; otherwise None.
    """

    capture: str
    batch: int
    plan: Plan
    cues: tuple[Cues, ...]
    options: ResolvedOptions
    guide: Uint8 | None = None

    @property
    def count(self) -> int:
        """Number of expressions."""
        return len(self.cues)

    @property
    def published(self) -> bool:
        """Whether the masks are the paper's: bilinear, without a choice between instances."""
        chosen = self.options.instances and any(cues.one for cues in self.cues)
        return self.guide is None and not chosen

    def prior(self, row: int) -> Float32 | None:
        """Weights of the refined map of one expression, (N_v,), or None."""
        if not self.options.spatial_prior or self.capture == "scores":
            return None
        return spatial_prior(self.cues[row], self.plan.grid_hw)

    def choose_instance(self, found: Localisation, row: int) -> Localisation:
        """Leave one instance in the scores of one expression, if the options say so."""
        if found.reason is not None or not self.options.instances:
            return found
        prior = spatial_prior(self.cues[row], self.plan.grid_hw)
        weights = found.refined if prior is None else found.refined * prior
        scores = one_instance(found.scores, weights, self.cues[row], self.plan.grid_hw)
        return replace(found, scores=scores)

    def mask(self, scores: Float32) -> BoolArray:
        """Upsample scores (N_v,) to the image and cut them at zero: (H, W) bool."""
        map_hw = scores.reshape(self.plan.grid_hw)
        # Without a positive score the guided filter must not create one.
        if self.guide is not None and (scores > 0).any():
            mask_hw = guided_upsample(map_hw, self.guide, self.plan) > 0
            # The filter can average away a single token on a smooth surface: keep it bilinear.
            if mask_hw.any():
                return mask_hw
        return np.asarray(upsample(map_hw, self.plan) > 0)


@dataclass(frozen=True)
class ExpressionOutput:
    """The output for one expression; arrays on the host.

    The confidence is computed from `evidence`. `mask_hw` is (H, W) bool, `token_attention` (N_v,
    N_p) float32, where the graph has it. `mask_ms` includes copying the mask to the host.
    """

    found: Localisation
    mask_hw: BoolArray
    empty: bool
    evidence: Evidence
    token_attention: Float32 | None
    method_ms: float
    mask_ms: float


def postprocess_numpy(outputs: Arrays, request: PostprocessRequest) -> list[ExpressionOutput]:
    """Apply the method and upsample.

    Raises:
        BundleError: an output is not of the shape that the manifest says.
    """
    expect_outputs(request.capture, outputs, batch=request.batch, tokens=request.plan.tokens)
    outputs = {name: each.astype(np.float32, copy=False) for name, each in outputs.items()}
    results = []
    for row in range(request.count):
        start = perf_counter()
        own = {name: each[row] for name, each in outputs.items()}
        found = localise_outputs(
            request.capture,
            own,
            tau=request.options.tau,
            prototype=request.options.prototype,
            prior=request.prior(row),
        )
        seen = evidence(found)
        found = request.choose_instance(found, row)
        after_method = perf_counter()
        mask_hw = request.mask(found.scores)
        result = ExpressionOutput(
            found,
            mask_hw,
            empty=not mask_hw.any(),
            evidence=seen,
            token_attention=own.get("token_attention"),
            method_ms=(after_method - start) * 1e3,
            mask_ms=(perf_counter() - after_method) * 1e3,
        )
        results.append(result)
    return results


def localise_outputs(
    capture: str, outputs: Arrays, *, tau: float, prototype: str, prior: Array | None = None
) -> Localisation:
    """Apply the method to a graph's outputs, or read its result where the graph contains it.

    The outputs are those of one expression, by logical name, float32. The prior is ignored for
    "scores", whose graph contains the threshold.
    """
    if capture == "scores":
        scores, refined = outputs["scores"], outputs["refined_attention"]
        coarse, fisher = outputs["coarse_attention"], float(outputs["separability"])
        reason = degenerate_reason(refined)
        if reason is None and not bool(np.isfinite(scores).all()):
            reason = FEATURES_NOT_FINITE
        if reason is not None:
            finite = np.nan_to_num(coarse), np.nan_to_num(refined)
            return Localisation(np.zeros_like(scores), *finite, 0.0, reason)
        return Localisation(scores, coarse, refined, fisher if np.isfinite(fisher) else 0.0)
    vectors = outputs["attention_vectors"]
    if capture == "matrices":
        propagated = propagate(outputs["transition_matrices"], vectors)
    else:
        propagated = outputs["propagated_vectors"]
    features = outputs["features"]
    return segment_tokens(vectors, propagated, features, tau=tau, rule=prototype, prior=prior)


def expect_outputs(capture: str, outputs: Mapping[str, Any], *, batch: int, tokens: int) -> None:
    """Check outputs of a batch, by logical name, against the shapes of docs/bundle.md, step 5.

    Raises:
        BundleError: an output has another shape.
    """
    one = (batch, tokens)
    shapes: dict[str, tuple[int, ...]]
    if capture == "scores":
        shapes = dict.fromkeys(("scores", "coarse_attention", "refined_attention"), one)
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


def evidence(found: Localisation) -> Evidence:
    """Measure how likely the object is present; all zero where there is no result.

    A model marks something even where the object is absent. Then its attention is spread, its two
    classes lie near each other, and the refined map and the score map agree less.
    """
    if found.reason is not None:
        return Evidence(0.0, 0.0, 0.0)
    return Evidence(
        found.separability,
        _concentration(np.asarray(found.coarse, np.float64)),
        _correlation(np.asarray(found.refined, np.float64), np.asarray(found.scores, np.float64)),
    )


def _concentration(values: np.ndarray) -> float:
    # A map that was made inside a graph is not checked yet.
    positive = values[np.isfinite(values) & (values > 0)]
    if values.size < 2 or not positive.size:
        return 0.0
    shares = positive / positive.sum()
    return float(1 + (shares * np.log(shares)).sum() / np.log(values.size))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / length if length > 0 else 0.0
