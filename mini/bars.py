"""Score a bundle on scenes of emoji that nothing was trained on: `python -m mini.bars`.

Prints a table of sets of questions with what `mini` has to reach in each. Scenes are about 512 x
512 pixels, from seeds and in splits of their own (`mini.scenes`), with rism's default settings.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mini.assets import FOLDER
from mini.batches import union
from mini.scenes import SceneMaker, Split
from mini.sets import SETS, Case
from rism.evaluation.metrics.iou import Overlap, overlap, summarise
from rism.runtime import Segmenter
from rism.runtime.method.upsampling import upsample
from rism.runtime.result.segmentation import Segmentation

LOST = 0.02  # share of what is there that the threshold may lose


class Bars:
    """Runs one bundle on the sets."""

    def __init__(self, segmenter: Segmenter, maker: SceneMaker, count: int, split: Split) -> None:
        self.segmenter, self.maker, self.count, self.split = segmenter, maker, count, split
        self.sure: list[float] = []  # confidence where the thing is there

    def run(self, case: Case, text: str | None = None, *, paper: bool = False) -> Segmentation:
        """The result of a question, even where the confidence is low."""
        text = case.question.text if text is None else text
        return self.segmenter.segment(case.scene.image_hwc, text, always=True, paper=paper)

    def score(self, found: Segmentation, case: Case) -> Overlap:
        """The overlap with what the question means."""
        return overlap(found.mask_hw, union(case.scene, case.question.targets))

    def right(self, found: Segmentation, case: Case) -> bool:
        """Whether the mask overlaps no other thing as much as the one that is meant."""
        shares = [
            np.count_nonzero(found.mask_hw & thing.mask_hw) / np.count_nonzero(thing.mask_hw)
            for thing in case.scene.things
        ]
        return int(np.argmax(shares)) in case.question.targets and bool(max(shares) > 0.25)

    def present(self, name: str) -> dict[str, float]:
        """Scores of a set of questions about what is there."""
        overlaps, right = list[Overlap](), list[bool]()
        for case in self._cases(name):
            found = self.run(case)
            overlaps.append(self.score(found, case))
            right.append(self.right(found, case))
            if name == "seen styles":
                self.sure.append(-1.0 if found.confidence is None else found.confidence)
        table = summarise(overlaps)
        return {
            "mIoU": table["mIoU"],
            "boundary IoU": table["boundary IoU"],
            "right": float(np.mean(right)),
        }

    def paraphrases(self) -> dict[str, float]:
        """The same questions in plain words and in any words, in percent of mIoU."""
        plain, other = list[Overlap](), list[Overlap]()
        for case in self._cases("paraphrases"):
            plain.append(self.score(self.run(case, case.question.canonical), case))
            other.append(self.score(self.run(case), case))
        return {"mIoU": summarise(other)["mIoU"], "canonical": summarise(plain)["mIoU"]}

    def rejected(self, name: str) -> dict[str, float]:
        """How well the confidence tells what is absent from what is there."""
        doubtful, outside = list[float](), list[bool]()
        for case in self._cases(name):
            found = self.run(case)
            doubtful.append(-1.0 if found.confidence is None else found.confidence)
            outside.append(found.outside is not None)
        sure, unsure = np.array(self.sure), np.array(doubtful)
        wins = (sure[:, None] > unsure).mean() + 0.5 * (sure[:, None] == unsure).mean()
        threshold = np.quantile(sure, LOST)
        return {
            "AUROC": float(wins),
            "rejected": float(((unsure < threshold) | np.array(outside)).mean()),
            "threshold": float(threshold),
        }

    def methods(self) -> dict[str, float]:
        """MIoU of the paper's three masks, without rism's additions."""
        overlaps: dict[str, list[Overlap]] = {"CAM": [], "RAM": [], "full": []}
        for case in self._cases("seen styles"):
            found = self.run(case, paper=True)
            maps = [upsample(m, found.plan) > 0.5 for m in (found.coarse, found.refined)]
            truth = union(case.scene, case.question.targets)
            for name, mask in zip(overlaps, (*maps, found.mask_hw), strict=True):
                overlaps[name].append(overlap(mask, truth))
        return {name: summarise(found)["mIoU"] for name, found in overlaps.items()}

    def _cases(self, name: str) -> Iterator[Case]:
        for index, case in enumerate(SETS[name].cases(self.maker, self.count, self.split)):
            if sys.stderr.isatty():
                print(f"\r{name}: {index + 1}/{self.count}  ", end="", file=sys.stderr)
            yield case

    def table(self) -> dict[str, dict[str, float]]:
        """Every set."""
        present = ("seen styles", "held-out style", "same kind", "relations", "all")
        found = {name: self.present(name) for name in present}
        found["paraphrases"] = self.paraphrases()
        found |= {name: self.rejected(name) for name in ("absent", "unknown words")}
        return found | {"methods": self.methods()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="a bundle folder; the built-in one if not given")
    parser.add_argument("--sprites", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=500, help="scenes of each set")
    parser.add_argument("--tuning", action="store_true", help="scenes to choose settings on")
    parser.add_argument("--json", type=Path, help="write the table there too")
    args = parser.parse_args()
    segmenter = Segmenter.from_bundle(args.bundle, provider="cpu")
    split: Split = "tuning" if args.tuning else "test"
    table = Bars(segmenter, SceneMaker(args.sprites), args.count, split).table()
    for name, row in table.items():
        cells = "  ".join(f"{measure} {100 * value:.1f}" for measure, value in row.items())
        print(f"{name:<15} {cells}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
