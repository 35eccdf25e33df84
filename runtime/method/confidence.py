"""Is what was asked for in the picture at all? One calibrated score from what the method leaves.

A model marks something even where nothing fits. Then its attention is spread, its two classes
lie near each other, and the refined map and the score map agree less.
"""

import numpy as np

from rism.runtime.bundle.confidence_rule import Evidence
from rism.runtime.method.equations import Localisation

__all__ = ["evidence"]


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
