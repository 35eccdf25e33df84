"""Is what was asked for in the picture at all? One calibrated score from what the method leaves.

A model marks something even where nothing fits. Then its attention is spread, its two classes
lie near each other, and the refined map and the score map agree less.
"""

from dataclasses import dataclass

import numpy as np

from rism.runtime.method import Localisation

__all__ = ["ConfidenceRule", "Evidence", "evidence"]

_LEAST_SEPARABILITY = 1e-3


@dataclass(frozen=True)
class Evidence:
    """What speaks for a presence.

    Attributes:
        separability: Fisher's score of mask and rest; `method.separability`.
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

    Attributes:
        separability: weight of its natural logarithm, from 0.001 on.
        concentration: weight.
        agreement: weight.
        bias: the constant.
        threshold: below this confidence nothing in the picture fits.
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
        """Return the probability, 0 to 1, that what was asked for is in the picture."""
        return float(1 / (1 + np.exp(-np.clip(self.logit(found), -60, 60))))

    def judge(self, found: Evidence, least: float | None = None) -> tuple[float, str | None]:
        """Return the confidence, and what to say where it is too low for an answer.

        Args:
            found: what speaks for a presence.
            least: what is expected; None for `threshold`.
        """
        confidence, least = self.confidence(found), self.threshold if least is None else least
        if confidence >= least:
            return confidence, None
        return confidence, (
            f"nothing in the picture seems to fit: confidence {confidence:.3f}, expected at least "
            f"{least:.3f}"
        )


def evidence(found: Localisation) -> Evidence:
    """Gather the evidence of one answer; all zero where there is none."""
    if found.reason is not None:
        return Evidence(0.0, 0.0, 0.0)
    return Evidence(
        found.separability,
        _concentration(np.asarray(found.coarse, np.float64)),
        _correlation(np.asarray(found.refined, np.float64), np.asarray(found.scores, np.float64)),
    )


def _concentration(values: np.ndarray) -> float:
    # Of a map that was made in a graph nobody has seen what is in it.
    positive = values[np.isfinite(values) & (values > 0)]
    if values.size < 2 or not positive.size:
        return 0.0
    shares = positive / positive.sum()
    return float(1 + (shares * np.log(shares)).sum() / np.log(values.size))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / length if length > 0 else 0.0
