"""Sets of questions that nothing was trained on, by what they rely on.

`python -m mini.sets --out DIR` writes them as images, masks and `DIR/scenes.jsonl`, which `rism
eval` reads: a group for each set.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mini.assets import FOLDER
from mini.batches import FORM_WEIGHTS, ask, union
from mini.conditions import Form
from mini.scenes import EmojiScene, SceneMaker, Split
from mini.words import Question

SIZES = ((512, 512), (576, 448), (448, 576), (640, 480), (400, 400))
PRESENT: Mapping[Form, float] = {
    form: share for form, share in FORM_WEIGHTS.items() if form not in ("all", "absent", "unknown")
}


@dataclass(frozen=True)
class Case:
    """A scene and a question about it."""

    scene: EmojiScene
    question: Question


def _any(_scene: EmojiScene, _question: Question) -> bool:
    return True


def _same_kind(scene: EmojiScene, question: Question) -> bool:
    """Whether another thing of the same kind is there, so that the kind alone is not enough."""
    kinds = [thing.kind for thing in scene.things]
    return len(question.targets) == 1 and kinds.count(kinds[question.targets[0]]) > 1


def _reworded(_scene: EmojiScene, question: Question) -> bool:
    """Whether a question is not asked in its plainest way."""
    return question.text != question.canonical


@dataclass(frozen=True)
class QuestionSet:
    """What is asked: forms by weight, of scenes with `least` things and more that are `wanted`."""

    forms: Mapping[Form, float]
    wanted: Callable[[EmojiScene, Question], bool] = _any
    least: int = 1
    held_out: bool = False

    def cases(self, maker: SceneMaker, count: int, split: Split) -> Iterator[Case]:
        """`count` scenes with a question each."""
        drawn: Split = "held-out" if self.held_out else split
        # Both splits have scenes of the held-out styles.
        seed = 77 if split == "test" else 79
        found, index = 0, 0
        while found < count:
            size = SIZES[index % len(SIZES)]
            scene = maker.scene((index, seed), split=drawn, size_wh=size, least=self.least)
            rng = np.random.default_rng([index, 78])
            for question in ask(scene, rng, 1, weights=self.forms, test=True):
                if question.form in self.forms and self.wanted(scene, question):
                    found += 1
                    yield Case(scene, question)
            index += 1


SETS = {
    "seen styles": QuestionSet(PRESENT),
    "held-out style": QuestionSet(PRESENT, held_out=True),
    "paraphrases": QuestionSet(PRESENT, wanted=_reworded),
    "same kind": QuestionSet(PRESENT, wanted=_same_kind, least=3),
    "relations": QuestionSet({"relation": 1.0}, least=3),
    "all": QuestionSet({"all": 1.0}, least=3),
    "absent": QuestionSet({"absent": 1.0}),
    "unknown words": QuestionSet({"unknown": 1.0}),
}


def write(name: str, cases: Iterator[Case], out: Path) -> Iterator[dict[str, object]]:
    """Write the images and masks of a set, and give the lines that tell of them."""
    stem = name.replace(" ", "-")
    (out / stem).mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(cases):
        image, mask = f"{stem}/{index}.png", f"{stem}/{index}.mask.png"
        Image.fromarray(case.scene.image_hwc).save(out / image)
        line: dict[str, object] = {"image": image, "expression": case.question.text, "group": name}
        targets = case.question.targets
        if targets:
            Image.fromarray(union(case.scene, targets)).save(out / mask)
            line["mask"] = mask
        yield line if targets else line | {"present": False}


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="NAME")
    parser.add_argument("--split", choices=("tuning", "test"), default="test")
    parser.add_argument("--count", type=int, default=500, help="scenes of each set")
    parser.add_argument("--sprites", type=Path, default=FOLDER)
    args = parser.parse_args()
    maker = SceneMaker(args.sprites)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "scenes.jsonl").open("w") as file:
        for name in args.sets:
            cases = SETS[name].cases(maker, args.count, args.split)
            for line in write(name, cases, args.out):
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
