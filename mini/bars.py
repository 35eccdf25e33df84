"""Score a bundle on scenes of emoji that nothing was trained on: `python -m mini.bars`.

Prints a table of sets of questions with what `mini` has to reach in each. Scenes are about 512 x
512 pixels, from seeds and in splits of their own (`mini.scenes`), with rism's default settings.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini.assets import FOLDER
from mini.batches import FORM_WEIGHTS, ask, union
from mini.conditions import Form
from mini.scenes import EmojiScene, SceneMaker, Split
from mini.words import Question
from rism.evaluation.metrics.iou import Overlap, overlap, summarise
from rism.runtime import Segmenter
from rism.runtime.method.upsampling import upsample
from rism.runtime.result.segmentation import Segmentation

SIZES = ((512, 512), (576, 448), (448, 576), (640, 480), (400, 400))
PRESENT: tuple[Form, ...] = (
    "kind", "colour", "size", "place", "order", "relation", "look", "not",
)  # fmt: skip
LOST = 0.02  # share of what is there that the threshold may lose


@dataclass(frozen=True)
class Case:
    """A scene and a question about it."""

    scene: EmojiScene
    question: Question


def cases(
    maker: SceneMaker,
    count: int,
    forms: Mapping[Form, float],
    *,
    split: Split = "test",
    wanted: Callable[[EmojiScene, Question], bool] | None = None,
    least: int = 1,
) -> Iterator[Case]:
    """`count` scenes with a question each, of forms by weight."""
    found, index = 0, 0
    while found < count:
        size = SIZES[index % len(SIZES)]
        scene = maker.scene((index, 77), split=split, size_wh=size, least=least)
        rng = np.random.default_rng([index, 78])
        for question in ask(scene, rng, 1, weights=forms, test=split != "training"):
            if question.form in forms and (wanted is None or wanted(scene, question)):
                found += 1
                yield Case(scene, question)
        index += 1


def _same_kind(scene: EmojiScene, question: Question) -> bool:
    """Whether another thing of the same kind is there, so that the kind alone is not enough."""
    kinds = [thing.kind for thing in scene.things]
    return len(question.targets) == 1 and kinds.count(kinds[question.targets[0]]) > 1


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

    def present(self, name: str, sample: Iterator[Case]) -> dict[str, float]:
        """Scores of a set of questions about what is there."""
        overlaps, right = list[Overlap](), list[bool]()
        for case in self._shown(name, sample):
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
        forms = {form: FORM_WEIGHTS[form] for form in PRESENT}
        plain, other = list[Overlap](), list[Overlap]()
        sample = cases(
            self.maker,
            self.count,
            forms,
            split=self.split,
            wanted=lambda _, question: question.text != question.canonical,
        )
        for case in self._shown("paraphrases", sample):
            plain.append(self.score(self.run(case, case.question.canonical), case))
            other.append(self.score(self.run(case), case))
        return {"mIoU": summarise(other)["mIoU"], "canonical": summarise(plain)["mIoU"]}

    def rejected(self, form: Form) -> dict[str, float]:
        """How well the confidence tells what is absent from what is there."""
        doubtful, outside = list[float](), list[bool]()
        for case in self._shown(form, cases(self.maker, self.count, {form: 1.0}, split=self.split)):
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
        forms = {form: FORM_WEIGHTS[form] for form in PRESENT}
        overlaps: dict[str, list[Overlap]] = {"CAM": [], "RAM": [], "full": []}
        sample = cases(self.maker, self.count, forms, split=self.split)
        for case in self._shown("methods", sample):
            found = self.run(case, paper=True)
            maps = [upsample(m, found.plan) > 0.5 for m in (found.coarse, found.refined)]
            truth = union(case.scene, case.question.targets)
            for name, mask in zip(overlaps, (*maps, found.mask_hw), strict=True):
                overlaps[name].append(overlap(mask, truth))
        return {name: summarise(found)["mIoU"] for name, found in overlaps.items()}

    def _shown(self, name: str, sample: Iterator[Case]) -> Iterator[Case]:
        for index, case in enumerate(sample):
            if sys.stderr.isatty():
                print(f"\r{name}: {index + 1}/{self.count}  ", end="", file=sys.stderr)
            yield case

    def table(self) -> dict[str, dict[str, float]]:
        """Every set."""
        forms = {form: FORM_WEIGHTS[form] for form in PRESENT}
        split, count, maker = self.split, self.count, self.maker
        return {
            "seen styles": self.present("seen styles", cases(maker, count, forms, split=split)),
            "held-out style": self.present(
                "held-out style", cases(maker, count, forms, split="held-out")
            ),
            "paraphrases": self.paraphrases(),
            "same kind": self.present(
                "same kind", cases(maker, count, forms, wanted=_same_kind, least=3, split=split)
            ),
            "relations": self.present(
                "relations", cases(maker, count, {"relation": 1.0}, least=3, split=split)
            ),
            "all": self.present("all", cases(maker, count, {"all": 1.0}, least=3, split=split)),
            "absent": self.rejected("absent"),
            "unknown words": self.rejected("unknown"),
            "methods": self.methods(),
        }


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
