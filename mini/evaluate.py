"""Score a bundle on held-out scenes: `python -m mini.evaluate [--bundle DIR] [--scenes 500]`.

Scenes 0 to N - 1 of a stream that is never trained on, one expression each, scored at the size of
the image with the metrics of `rism eval`.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from rism.evaluation.metrics.iou import METRICS, Overlap, overlap, summarise
from rism.evaluation.scenes.expressions import FORMS
from rism.evaluation.scenes.judged import judged_scene
from rism.runtime import Segmenter
from rism.runtime.method.upsampling import upsample

METHODS = ("CAM > 0.5", "RAM > 0.5", "full")


def score_scenes(segmenter: Segmenter, scenes: int) -> dict[str, dict[str, float]]:
    """Scores by the paper's methods, and of the full method by form of expression."""
    overlaps: dict[str, list[Overlap]] = defaultdict(list)
    for index in range(scenes):
        scene, expression = judged_scene(index)
        truth = scene.objects[expression.target].mask_hw
        result = segmenter.segment(scene.image_hwc, expression.text, paper=True)
        maps = [upsample(m, result.plan) > 0.5 for m in (result.coarse, result.refined)]
        for name, mask in zip(METHODS, (*maps, result.mask), strict=True):
            overlaps[name].append(overlap(mask, truth))
        overlaps[f"full, {expression.form}"].append(overlaps["full"][-1])
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{scenes}", end="", file=sys.stderr)
    order = [*METHODS, *(f"full, {form}" for form in FORMS)]
    return {name: summarise(overlaps[name]) for name in order if name in overlaps}


def score_examples(segmenter: Segmenter, folder: Path) -> tuple[int, int]:
    """How many images of a folder with examples.json have an IoU of at least 0.5, of how many."""
    entries = json.loads((folder / "examples.json").read_text())
    right = 0
    for entry in entries:
        truth = np.asarray(Image.open(folder / entry["truth"])) > 127
        found = segmenter.segment(folder / entry["image"], entry["expression"])
        iou = overlap(found.mask, truth).iou
        right += iou >= 0.5
        print(f"  {entry['image']:<16} {entry['expression']:<34} IoU {iou:.2f}")
    return right, len(entries)


def main() -> None:
    """Print the table, and how many examples are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="a bundle folder; the built-in one if not given")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--json", type=Path, help="write the table there too")
    args = parser.parse_args()
    segmenter = Segmenter.from_bundle(args.bundle, provider="cpu")
    table = score_scenes(segmenter, args.scenes)
    print(f"{'':<16} {'n':>4} " + " ".join(f"{name:>6}" for name in METRICS))
    for method, row in table.items():
        cells = " ".join(f"{100 * row[name]:{max(6, len(name))}.2f}" for name in METRICS)
        print(f"{method:<16} {row['n']:>4} {cells}")
    right, count = score_examples(segmenter, args.examples)
    print(f"examples right: {right} of {count}")
    if args.json:
        args.json.write_text(json.dumps(table | {"examples_right": right}, indent=1) + "\n")


if __name__ == "__main__":
    main()
