"""Fits a bundle's confidence rule to records of present and absent objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rism.evaluation.metrics.iou import auroc
from rism.evaluation.run.records import Record
from rism.runtime.bundle.confidence_rule import ConfidenceRule, Evidence
from rism.runtime.errors import InputError

LEAST_SAMPLES = 50
_RIDGE = 1e-3
_STEPS = 50
_DIGITS = 6


@dataclass(frozen=True)
class Fit:
    """A rule, and its effect on the present and absent samples that it was fitted to.

    Below its threshold are a share `lost` of the present and `rejected` of the absent samples.
    """

    rule: ConfidenceRule
    present: int
    absent: int
    auroc: float
    lost: float
    rejected: float


def fit_confidence(records: Iterable[Record], *, lost: float = 0.01) -> Fit:
    """Fit a logistic regression with a small ridge penalty, and choose its threshold.

    Args:
        records: of one run over a dataset with present and absent samples.
        lost: share of the present samples that may fall below the threshold, 0 to below 0.5.

    Raises:
        InputError: fewer than 50 samples of a class, or `lost` is out of range.
    """
    if not 0.0 <= lost < 0.5:
        raise InputError(f"{lost} of the present may be rejected, expected 0 to below 0.5")
    kept = list(records)
    is_present = np.array([record.sample.present for record in kept], bool)
    counts = int(is_present.sum()), int((~is_present).sum())
    if min(counts) < LEAST_SAMPLES:
        raise InputError(
            f"there are {counts[0]} present and {counts[1]} absent samples, expected at least "
            f"{LEAST_SAMPLES} of each: score a dataset that has both"
        )
    evidence = [Evidence(each.separability, each.concentration, each.agreement) for each in kept]
    rule = _regress(evidence, is_present)
    sure = np.array([rule.confidence(each) for each in evidence])
    threshold = float(np.quantile(sure[is_present], lost, method="lower"))
    rule = replace(rule, threshold=round(threshold, _DIGITS))
    below = sure < rule.threshold
    return Fit(
        rule,
        *counts,
        auroc=auroc(sure[is_present].tolist(), sure[~is_present].tolist()),
        lost=float(below[is_present].mean()),
        rejected=float(below[~is_present].mean()),
    )


def _regress(evidence: list[Evidence], is_present: npt.NDArray[np.bool_]) -> ConfidenceRule:
    """Run Newton's method on standardised features; returns weights of the raw features."""
    unit = ConfidenceRule(1.0, 0.0, 0.0, 0.0, 0.0)
    features = np.array(
        [[unit.logit(each), each.concentration, each.agreement] for each in evidence]
    )
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-12
    design = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    ridge = _RIDGE * np.diag([1.0, 1.0, 1.0, 0.0])
    weights = np.zeros(4)
    for _ in range(_STEPS):
        sure = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (sure - is_present) / len(design) + ridge @ weights
        curve = (design * (sure * (1 - sure))[:, None]).T @ design / len(design) + ridge
        weights -= np.linalg.solve(curve, slope)
    raw = weights[:3] / scale
    separability, concentration, agreement, bias = (
        round(float(value), _DIGITS) for value in (*raw, weights[3] - raw @ mean)
    )
    return ConfidenceRule(separability, concentration, agreement, bias, threshold=0.0)
