"""Fitting a bundle's confidence: from records of present and absent objects to a rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rism.evaluation.metrics.iou import auroc
from rism.evaluation.run.records import Record
from rism.runtime.bundle.confidence_rule import ConfidenceRule, Evidence
from rism.runtime.errors import InputError

__all__ = ["Fit", "fit_confidence"]

LEAST_SAMPLES = 50
_RIDGE = 1e-3
_STEPS = 50
_DIGITS = 6


@dataclass(frozen=True)
class Fit:
    """A rule, and what it does on the records that it was fitted to.

    Attributes:
        rule: weights and threshold.
        present: samples with the object in the picture.
        absent: samples without.
        auroc: of the confidence, present against absent.
        lost: share of the present ones below the threshold.
        rejected: share of the absent ones below it.
    """

    rule: ConfidenceRule
    present: int
    absent: int
    auroc: float
    lost: float
    rejected: float


def fit_confidence(records: Iterable[Record], *, lost: float = 0.01) -> Fit:
    """Fit a logistic regression with a small ridge, and choose its threshold.

    Args:
        records: of one run over a dataset with present and absent samples.
        lost: share of the present samples that may fall below the threshold, 0 to below 0.5.

    Raises:
        InputError: fewer than 50 samples of a class, or `lost` is out of range.
    """
    if not 0.0 <= lost < 0.5:
        raise InputError(f"{lost} of the present may be lost, expected 0 to below 0.5")
    kept = [(_evidence(record), record.present) for record in records]
    is_present = np.array([present for _, present in kept], bool)
    counts = int(is_present.sum()), int((~is_present).sum())
    if min(counts) < LEAST_SAMPLES:
        raise InputError(
            f"there are {counts[0]} present and {counts[1]} absent samples, expected at least "
            f"{LEAST_SAMPLES} of each: score a dataset that has both"
        )
    rule = _regress([evidence for evidence, _ in kept], is_present)
    sure = np.array([rule.confidence(evidence) for evidence, _ in kept])
    threshold = float(np.quantile(sure[is_present], lost, method="lower"))
    rule = ConfidenceRule(
        rule.separability, rule.concentration, rule.agreement, rule.bias, round(threshold, _DIGITS)
    )
    below = sure < rule.threshold
    return Fit(
        rule,
        *counts,
        auroc=auroc(sure[is_present].tolist(), sure[~is_present].tolist()),
        lost=float(below[is_present].mean()),
        rejected=float(below[~is_present].mean()),
    )


def _evidence(record: Record) -> Evidence:
    return Evidence(record.separability, record.concentration, record.agreement)


def _regress(evidence: list[Evidence], is_present: npt.NDArray[np.bool_]) -> ConfidenceRule:
    """Newton's method on standardised features; the weights are of the features themselves."""
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
    own = weights[:3] / scale
    bias = weights[3] - float(own @ mean)
    separability, concentration, agreement, constant = (
        round(float(value), _DIGITS) for value in (*own, bias)
    )
    return ConfidenceRule(separability, concentration, agreement, constant, threshold=0.0)
