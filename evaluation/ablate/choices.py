"""What each way to read less of a model costs in mIoU and saves in work: a table, and an advice."""

from __future__ import annotations

from dataclasses import dataclass

from rism.evaluation.ablate.grid import ChoiceSetting
from rism.evaluation.ablate.scoring import Outcome
from rism.evaluation.metrics.iou import paired
from rism.export.capture_blocks import last_block

LOSS = 0.01
"""Loss of mIoU that a recommended choice stays below with its whole 95 % interval."""


@dataclass(frozen=True)
class Choice:
    """One way to read less, beside the published method on the same samples.

    Attributes:
        setting: blocks and noisy tokens.
        blocks: how many blocks run: up to the last that is read.
        work: of the products with weights, as a share of the published method's.
        difference: its mIoU minus that of the published method.
        margin: half of the 95 % interval of that.
    """

    setting: ChoiceSetting
    blocks: int
    work: float
    difference: float
    margin: float

    @property
    def flags(self) -> str:
        """The options of `rism export` for it."""
        return f"--capture-blocks {self.setting.blocks} --noisy-grid {self.setting.noisy_grid}"


def choices(outcome: Outcome) -> list[Choice]:
    """Compare every choice of a run of two samples or more with the published method."""
    grid = outcome.grid
    paper = outcome.of(ChoiceSetting("all", 1))
    found = []
    for noisy_grid in grid.noisy_grids:
        for setting in grid.choices(noisy_grid):
            last = last_block(
                grid.rows(setting), double=grid.double, feature_block=grid.feature_block
            )
            # Prompt, noisy and clean tokens; a typical prompt is half as long as the image.
            tokens = (0.5 + 1 / noisy_grid**2 + 1) / 2.5
            work = (last + 1) / (grid.double + grid.single) * tokens
            difference, margin = paired(outcome.of(setting), paper)
            found.append(Choice(setting, last + 1, work, difference, margin))
    return found


def advice(found: list[Choice]) -> str:
    """Return a sentence that names the cheapest choice that loses less than `LOSS` for sure."""
    good = [each for each in found if each.difference - each.margin > -LOSS]
    best = min(good, key=lambda each: (each.work, -round(each.difference, 4)))
    return (
        f"Cheapest whose whole interval stays above a loss of {100 * LOSS:g} point: "
        f"`{best.flags}`, {100 * best.difference:+.2f} ± {100 * best.margin:.2f} points of mIoU "
        f"for {best.work:.0%} of the products with weights."
    )


def choice_rows(outcome: Outcome) -> str:
    """Return the table and the advice in Markdown; nothing of fewer than two samples."""
    if outcome.count < 2:
        return ""
    found = choices(outcome)
    lines = [
        "The whole method at step 0, its features as by default, with attention of some blocks and "
        "with noisy tokens in one of so many rows and columns. Differences are of mIoU in points "
        "to the first row, with the 95 % interval of the paired differences. Work is that of "
        "products with weights, for a prompt half as long as the image.\n",
        "| blocks read | noisy grid | blocks run | work | mIoU | oIoU | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in found:
        numbers = (f"{outcome.percent(each.setting, name):.2f}" for name in ("mIoU", "oIoU"))
        lines.append(
            f"| {each.setting.blocks} | {each.setting.noisy_grid} | {each.blocks} | "
            f"{each.work:.0%} | {' | '.join(numbers)} | "
            f"{100 * each.difference:+.2f} ± {100 * each.margin:.2f} |"
        )
    return "\n".join([*lines, "", advice(found), ""])
