"""Checks each claim of the paper on the results of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from rism.evaluation.ablate.grid import SITE_NAMES, TAUS, MapSetting, Setting
from rism.evaluation.ablate.scoring import Outcome
from rism.evaluation.metrics.iou import paired

ABOUT_AS_GOOD = 0.02
"""Largest difference of mIoU between two settings that are "about as good"."""


@dataclass(frozen=True)
class Finding:
    """One claim of the paper, and the result of the run.

    Attributes:
        claim: of the paper.
        compared: the two settings.
        difference: mIoU of the first minus that of the second.
        margin: half of its 95 % interval, over the samples' paired differences.
        equal: the claim is that the two are about as good.
    """

    claim: str
    compared: tuple[Setting, Setting]
    difference: float
    margin: float
    equal: bool = False

    @property
    def verdict(self) -> str:
        """The result: "yes", "no", or "undecided" where the interval allows both."""
        if self.equal:
            if abs(self.difference) + self.margin <= ABOUT_AS_GOOD:
                return "yes"
            return "no" if abs(self.difference) - self.margin > ABOUT_AS_GOOD else "undecided"
        if self.difference - self.margin > 0:
            return "yes"
        return "no" if self.difference + self.margin < 0 else "undecided"


def findings(outcome: Outcome) -> list[Finding]:
    """Compare a run with the paper's claims (section 4.4)."""
    if outcome.count < 2:
        return []
    grid, default = outcome.grid, outcome.grid.default()
    cam, ram = (MapSetting(0, "all", name) for name in ("CAM", "RAM"))
    deep, shallow = (replace(ram, blocks=name) for name in ("deep", "shallow"))

    def better(claim: str, one: Setting, *others: Setting, equal: bool = False) -> None:
        """Compare a setting with another, or with the best of several, if there are any."""
        if others:
            other = max(others, key=lambda each: outcome.percent(each, "mIoU"))
            found.append(_compare(outcome, claim, one, other, equal=equal))

    found: list[Finding] = []
    better("RAM is better than CAM", ram, cam)
    better("the whole method is better than RAM", default, ram)
    better("deep blocks alone are about as good as all (RAM)", deep, ram, equal=True)
    if grid.double:
        better("shallow blocks alone are worse than deep ones (RAM)", deep, shallow)
    later = [timestep for timestep in grid.timesteps if timestep]
    better("step 0 is the best for RAM", ram, *(replace(ram, timestep=t) for t in later))
    better(
        "step 0 is the best for features", default, *(replace(default, timestep=t) for t in later)
    )
    sites = [site for site in ("mmsa", "adaln", "block") if site in grid.sites]
    names = SITE_NAMES | {"block": "block"}
    for one, other in pairwise(sites):
        claim = f"{names[one]} features are better than {names[other]} features"
        better(claim, replace(default, site=one), replace(default, site=other))
    claim = f"block {default.block}, at about two thirds of the depth, has the best features"
    better(claim, default, *(replace(default, block=b) for b in grid.blocks if b != default.block))
    for name, taus in (
        ("lower", [tau for tau in TAUS if tau < default.tau]),
        ("higher", [tau for tau in TAUS if tau > default.tau]),
    ):
        claim = f"tau {default.tau:g} is better than every {name} one"
        better(claim, default, *(replace(default, tau=tau) for tau in taus))
    return found


def _compare(outcome: Outcome, claim: str, one: Setting, other: Setting, *, equal: bool) -> Finding:
    difference, margin = paired(outcome.of(one), outcome.of(other))
    return Finding(claim, (one, other), difference, margin, equal)
