"""Draw the images of examples/: `python -m mini.make_examples --out examples`.

They are held-out scenes from number 10,000 on (the score uses 0 to 499): for each line of the list
below the first scene whose expression fits, whatever the model answers.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rism.evaluation.scenes.expressions import Expression, make_expressions
from rism.evaluation.scenes.judged import judged_scene
from rism.evaluation.scenes.scene import Scene

FIRST = 10_000


@dataclass(frozen=True)
class Wanted:
    """A file name, and the conditions that its scene and expression fulfil."""

    name: str
    form: str
    size_wh: tuple[int, int]
    text: str | None = None
    objects: int = 3


WANTED = (
    Wanted("street", "colour", (640, 480), text="the green van", objects=4),
    Wanted("kind-1", "kind", (480, 360)),
    Wanted("kind-2", "kind", (400, 400), objects=4),
    Wanted("colour-1", "colour", (512, 384), objects=4),
    Wanted("colour-2", "colour", (360, 480)),
    Wanted("colour-3", "colour", (600, 450), objects=5),
    Wanted("size-1", "size", (480, 480)),
    Wanted("place-1", "place", (512, 384)),
    Wanted("place-2", "place", (450, 600)),
    Wanted("relation-1", "relation", (560, 420)),
)


def _fitting(wanted: Wanted, start: int) -> tuple[int, Scene, Expression]:
    """Find the first scene that fits, and its expression."""
    for index in itertools.count(start):
        scene, drawn = judged_scene(index, size_wh=wanted.size_wh)
        if len(scene.objects) < wanted.objects:
            continue
        found = [drawn]
        if wanted.text is not None:
            found = make_expressions(scene, np.random.default_rng(index))
        for each in found:
            if each.needed and wanted.text in (None, each.text) and each.form == wanted.form:
                return index, scene, each
    raise AssertionError("there is always another scene")


def main() -> None:
    """Write the images, their masks and examples.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    (args.out / "truth").mkdir(parents=True, exist_ok=True)
    index, entries = FIRST - 1, []
    for wanted in WANTED:
        index, scene, expression = _fitting(wanted, index + 1)
        name = f"{wanted.name}.png"
        Image.fromarray(scene.image_hwc).save(args.out / name, optimize=True)
        mask = scene.objects[expression.target].mask_hw
        Image.fromarray(mask.astype(np.uint8) * 255).save(args.out / "truth" / name, optimize=True)
        entry = {"image": name, "expression": expression.text, "truth": f"truth/{name}"}
        entries.append(entry | {"form": expression.form, "scene": index})
        print(index, expression.text)
    (args.out / "examples.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
