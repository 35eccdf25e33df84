"""The calibrated confidence of a bundle: logistic regression on three measures of one result."""

from dataclasses import dataclass

import numpy as np

_LEAST_SEPARABILITY = 1e-3


@dataclass(frozen=True)
class Evidence:
    """Measures of one result that tell present objects from absent ones.

    Attributes:
        separability: Fisher's score of the mask against the rest.
        concentration: 1 - H(p) / log N of the coarse map as a distribution p over tokens: 0
            where it is even, 1 where it is one token.
        agreement: Pearson's correlation of the refined map and the score map.
    """

    separability: float
    concentration: float
    agreement: float


@dataclass(frozen=True)
class ConfidenceRule:
    """Logistic regression on `Evidence`, fitted to present and absent objects of a model.

    The first three are weights, that of separability of its natural logarithm, where less than
    0.001 counts as 0.001. Below `threshold` the object counts as absent.
    """

    separability: float
    concentration: float
    agreement: float
    bias: float
    threshold: float

    def logit(self, found: Evidence) -> float:
        """Return the logarithm of the odds."""
        return (
            self.bias
            + self.separability * float(np.log(max(found.separability, _LEAST_SEPARABILITY)))
            + self.concentration * found.concentration
            + self.agreement * found.agreement
        )

    def confidence(self, found: Evidence) -> float:
        """Return the probability, 0 to 1, that the object is in the image."""
        return float(1 / (1 + np.exp(-np.clip(self.logit(found), -60, 60))))

    def judge(self, found: Evidence, least: float | None = None) -> tuple[float, str | None]:
        """Return the confidence, and a message if it is below `least` (None: `threshold`)."""
        confidence, least = self.confidence(found), self.threshold if least is None else least
        if confidence >= least:
            return confidence, None
        return confidence, (
            f"nothing in the image seems to fit: confidence {confidence:.3f}, expected at least "
            f"{least:.3f}"
        )
