"""The paper's findings, asked of a run: does each hold here, and by how much?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rism.evaluation.ablate.grid import TAUS, FeatureSetting, MapSetting, Setting
from rism.evaluation.ablate.runner import Outcome

__all__ = ["ABOUT_AS_GOOD", "Finding", "findings"]

ABOUT_AS_GOOD = 0.02
"""Two settings within so much mIoU of each other are called about as good."""

_Z95 = 1.959964


@dataclass(frozen=True)
class Finding:
    """One claim of the paper beside what was found.

    Attributes:
        claim: what the paper says.
        compared: the two settings.
        difference: of their mIoU, the first's less the second's.
        margin: half of the 95 % interval of it, over the samples' paired differences.
        equal: the claim is that the two are about as good.
    """

    claim: str
    compared: tuple[Setting, Setting]
    difference: float
    margin: float
    equal: bool = False

    @property
    def verdict(self) -> str:
        """Say "yes", "no", or "undecided" where the interval holds both."""
        if self.equal:
            if abs(self.difference) + self.margin <= ABOUT_AS_GOOD:
                return "yes"
            return "no" if abs(self.difference) - self.margin > ABOUT_AS_GOOD else "undecided"
        if self.difference - self.margin > 0:
            return "yes"
        return "no" if self.difference + self.margin < 0 else "undecided"


def findings(outcome: Outcome) -> list[Finding]:
    """Compare a run with what the paper found (section 4.4)."""
    if outcome.count < 2:
        return []
    grid, default = outcome.grid, outcome.grid.default()
    cam, ram = (MapSetting(0, "all", name) for name in ("CAM", "RAM"))
    deep, shallow = (replace(ram, blocks=name) for name in ("deep", "shallow"))
    found = [
        _compare(outcome, "RAM is better than CAM", ram, cam),
        _compare(outcome, "the whole method is better than RAM", default, ram),
        _compare(
            outcome, "deep blocks alone are about as good as all (RAM)", deep, ram, equal=True
        ),
    ]
    if grid.double:
        found.append(
            _compare(outcome, "shallow blocks alone are worse than deep ones (RAM)", deep, shallow)
        )
    later = [timestep for timestep in grid.timesteps if timestep]
    if later:
        found += [
            _best(
                outcome,
                "step 0 is the best for RAM",
                ram,
                [replace(ram, timestep=t) for t in later],
            ),
            _best(
                outcome,
                "step 0 is the best for features",
                default,
                [replace(default, timestep=t) for t in later],
            ),
        ]
    sites = [
        replace(default, site=site) for site in ("mmsa", "adaln", "block") if site in grid.sites
    ]
    names = {"mmsa": "MMSA", "adaln": "AdaLN", "block": "block"}
    for better, worse in pairwise(sites):
        claim = f"{names[better.site]} features are better than {names[worse.site]} features"
        found.append(_compare(outcome, claim, better, worse))
    others = [replace(default, block=block) for block in grid.blocks if block != default.block]
    if others:
        claim = f"block {default.block}, at about two thirds of the depth, has the best features"
        found.append(_best(outcome, claim, default, others))
    return found + _thresholds(outcome, default)


def _thresholds(outcome: Outcome, default: FeatureSetting) -> list[Finding]:
    """Tau: rising to the default, then falling."""
    settings = [replace(default, tau=tau) for tau in TAUS]
    lower = [each for each in settings if each.tau < default.tau]
    higher = [each for each in settings if each.tau > default.tau]
    found = []
    if lower:
        claim = f"tau {default.tau:g} is better than every lower one"
        found.append(_best(outcome, claim, default, lower))
    if higher:
        claim = f"tau {default.tau:g} is better than every higher one"
        found.append(_best(outcome, claim, default, higher))
    return found


def _best(outcome: Outcome, claim: str, one: Setting, others: Sequence[Setting]) -> Finding:
    """Compare one with the best of the others."""
    return _compare(outcome, claim, one, max(others, key=lambda each: _miou(outcome, each)))


def _compare(
    outcome: Outcome, claim: str, one: Setting, other: Setting, *, equal: bool = False
) -> Finding:
    differences = outcome.of(one) - outcome.of(other)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return Finding(claim, (one, other), float(differences.mean()), _Z95 * error, equal)


def _miou(outcome: Outcome, setting: Setting) -> float:
    return outcome.summaries[setting]["mIoU"]
