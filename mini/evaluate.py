"""Score a bundle on held-out scenes: `python -m mini.evaluate [--bundle DIR] [--scenes 500]`.

Scenes 0 to N - 1 of the stream that training never sees, one expression each, at the size of
the picture (docs: METHOD, metrics): mIoU is the mean over expressions, oIoU the sum of
intersections over the sum of unions, P@X the share with an IoU of at least X.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rism.evaluation.scenes import FORMS, held_out_scene
from rism.runtime import Segmenter
from rism.runtime.geometry import upsample

Mask = npt.NDArray[np.bool_]
METHODS = ("CAM > 0.5", "RAM > 0.5", "full")
BARS = (0.5, 0.6, 0.7, 0.8, 0.9)


class Tally:
    """Intersections and unions of one method."""

    def __init__(self) -> None:
        self.intersections: list[int] = []
        self.unions: list[int] = []

    def add(self, found: Mask, truth: Mask) -> None:
        """Count one pair of masks (H, W)."""
        self.intersections.append(int((found & truth).sum()))
        self.unions.append(int((found | truth).sum()))

    @property
    def ious(self) -> npt.NDArray[np.float64]:
        """IoU per expression; 0 where the union is empty."""
        return np.array(self.intersections) / np.maximum(self.unions, 1)

    def summary(self) -> dict[str, float]:
        """MIoU, oIoU and precision at the usual bars."""
        ious = self.ious
        found = {
            "mIoU": float(ious.mean()),
            "oIoU": sum(self.intersections) / max(sum(self.unions), 1),
        }
        return found | {f"P@{bar:g}": float((ious >= bar).mean()) for bar in BARS}


def score_scenes(segmenter: Segmenter, scenes: int) -> dict[str, dict[str, float]]:
    """Summaries by method, and of the full method by form of expression."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for index in range(scenes):
        scene, expression = held_out_scene(index)
        truth = scene.objects[expression.target].mask_hw
        result = segmenter.segment(scene.image_hwc, expression.text)
        coarse = upsample(result.coarse, result.plan) > 0.5
        refined = upsample(result.refined, result.plan) > 0.5
        for name, mask in zip(METHODS, (coarse, refined, result.mask), strict=True):
            tallies[name].add(mask, truth)
        tallies[f"full, {expression.form}"].add(result.mask, truth)
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{scenes}", end="", file=sys.stderr)
    order = [*METHODS, *(f"full, {form}" for form in FORMS)]
    return {
        name: {"n": len(tallies[name].unions)} | tallies[name].summary()
        for name in order
        if name in tallies
    }


def score_examples(segmenter: Segmenter, folder: Path) -> tuple[int, int]:
    """How many pictures of a folder with examples.json are right (IoU >= 0.5), of how many."""
    entries = json.loads((folder / "examples.json").read_text())
    right = 0
    for entry in entries:
        truth = np.asarray(Image.open(folder / entry["truth"])) > 127
        tally = Tally()
        tally.add(segmenter.segment(folder / entry["image"], entry["expression"]).mask, truth)
        iou = float(tally.ious[0])
        right += iou >= 0.5
        print(f"  {entry['image']:<16} {entry['expression']:<34} IoU {iou:.2f}")
    return right, len(entries)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and the examples' verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="a bundle folder; the built-in one if not given")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--json", type=Path, help="write the table there too")
    args = parser.parse_args(arguments)
    segmenter = Segmenter.from_bundle(args.bundle, provider="cpu")
    table = score_scenes(segmenter, args.scenes)
    columns = ["mIoU", "oIoU", *(f"P@{bar:g}" for bar in BARS)]
    print(f"{'':<16} {'n':>4} " + " ".join(f"{name:>6}" for name in columns))
    for name, row in table.items():
        cells = " ".join(f"{100 * row[column]:6.2f}" for column in columns)
        print(f"{name:<16} {row['n']:>4} {cells}")
    right, count = score_examples(segmenter, args.examples)
    print(f"examples right: {right} of {count}")
    if args.json:
        args.json.write_text(json.dumps(table | {"examples_right": right}, indent=1) + "\n")


if __name__ == "__main__":
    main()
