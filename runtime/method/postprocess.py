"""From what a transformer graph returned to answers, on the host."""

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.confidence_rule import Evidence
from rism.runtime.engines.base import Arrays
from rism.runtime.expression.spatial_words import Cues
from rism.runtime.image.geometry import Plan
from rism.runtime.method.confidence import evidence
from rism.runtime.method.equations import Localisation
from rism.runtime.method.graph_outputs import expect_outputs, localise_outputs
from rism.runtime.method.instances import one_instance, spatial_prior
from rism.runtime.method.upsampling import guided_upsample, upsample

__all__ = ["ExpressionOutput", "PostprocessRequest", "postprocess_numpy"]


@dataclass(frozen=True)
class PostprocessRequest:
    """What is to be made of a graph's outputs.

    Attributes:
        capture: which capture mode the graph is.
        batch: B, rows of the outputs.
        count: how many of them are expressions; the others fill up a fixed batch.
        plan: how the picture was brought to the model's grid.
        tau: region threshold.
        prototype: see `method.prototypes`.
        cues: what each expression says of place and size; none where that is not to be used.
        spatial_prior: weigh the refined map by words of place before tau.
        instances: keep one of several parts by words of place and size.
        guide: (H, W, 3) uint8, the picture, for a mask along its edges; None for bilinear.
    """

    capture: str
    batch: int
    count: int
    plan: Plan
    tau: float
    prototype: str
    cues: tuple[Cues, ...] = ()
    spatial_prior: bool = False
    instances: bool = False
    guide: npt.NDArray[np.uint8] | None = None

    def prior(self, row: int) -> npt.NDArray[np.float32] | None:
        """Weights of the refined map of one expression, (N_v,), or None."""
        if not self.spatial_prior or not self.cues or self.capture == "scores":
            return None
        return spatial_prior(self.cues[row], self.plan.grid_hw)

    @property
    def published(self) -> bool:
        """The masks are the published ones: of all parts, bilinear."""
        chosen = self.instances and any(cues.one for cues in self.cues)
        return self.guide is None and not chosen

    def finished(self, found: Localisation, row: int) -> Localisation:
        """Leave one instance in the scores of one expression, if that is wanted."""
        if found.reason is not None or not self.instances or not self.cues:
            return found
        cues, weights = self.cues[row], found.refined
        prior = spatial_prior(cues, self.plan.grid_hw)
        if prior is not None:
            weights = weights * prior
        scores = one_instance(found.scores, weights, cues, self.plan.grid_hw)
        return replace(found, scores=scores)

    def mask(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Bring scores (N_v,) to the picture and cut them at zero: (H, W) bool."""
        map_hw = scores.reshape(self.plan.grid_hw)
        if self.guide is None:
            return np.asarray(upsample(map_hw, self.plan) > 0)
        # Where nothing is positive, a fit to the picture must not find something.
        if not (scores > 0).any():
            return np.zeros(self.guide.shape[:2], np.bool_)
        mask_hw = guided_upsample(map_hw, self.guide, self.plan) > 0
        # A token alone on a smooth surface can be averaged away: it is an answer all the same.
        return mask_hw if mask_hw.any() else np.asarray(upsample(map_hw, self.plan) > 0)


@dataclass(frozen=True)
class ExpressionOutput:
    """What is said of one expression; arrays of the host.

    Attributes:
        found: the method's answer on the token grid.
        mask_hw: (H, W) bool.
        empty: nothing is in the mask.
        evidence: what speaks for a presence of what was asked for.
        token_attention: (N_v, N_p) float32, where the graph has it.
        method_ms: what the method took.
        mask_ms: what the mask took, and its way to the host.
    """

    found: Localisation
    mask_hw: npt.NDArray[np.bool_]
    empty: bool
    evidence: Evidence
    token_attention: npt.NDArray[np.float32] | None
    method_ms: float
    mask_ms: float


def postprocess_numpy(outputs: Arrays, wanted: PostprocessRequest) -> list[ExpressionOutput]:
    """Apply the method and upsample, with NumPy.

    Raises:
        BundleError: an output is not of the shape that the bundle promised.
    """
    expect_outputs(wanted.capture, outputs, batch=wanted.batch, tokens=wanted.plan.tokens)
    outputs = {name: each.astype(np.float32, copy=False) for name, each in outputs.items()}
    answers = []
    for row in range(wanted.count):
        start = perf_counter()
        own = {name: each[row] for name, each in outputs.items()}
        found = localise_outputs(
            wanted.capture,
            own,
            tau=wanted.tau,
            prototype=wanted.prototype,
            prior=wanted.prior(row),
        )
        seen = evidence(found)
        found = wanted.finished(found, row)
        after_method = perf_counter()
        mask_hw = wanted.mask(found.scores)
        empty = not mask_hw.any()
        after_mask = perf_counter()
        answers.append(
            ExpressionOutput(
                found,
                mask_hw,
                empty,
                seen,
                own.get("token_attention"),
                method_ms=(after_method - start) * 1e3,
                mask_ms=(after_mask - after_method) * 1e3,
            )
        )
    return answers
