"""Draw the pictures of examples/: `python -m mini.make_examples --out examples`.

The pictures come from the held-out stream, from number 10,000 on (the score uses 0 to 499):
for each line of the list below the first scene whose drawn expression fits. Nothing is
chosen by what the model makes of it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rism.evaluation.scenes import Expression, Scene, held_out_scene, make_expressions

FIRST = 10_000


@dataclass(frozen=True)
class Wanted:
    """A file name, the form of its expression, and what else must hold."""

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
    index = start
    while True:
        scene, drawn = held_out_scene(index, size_wh=wanted.size_wh)
        if len(scene.objects) >= wanted.objects:
            if wanted.text is None and drawn.form == wanted.form and drawn.needed:
                return index, scene, drawn
            if wanted.text is not None:
                rng = np.random.default_rng(index)
                for expression in make_expressions(scene, rng):
                    if expression.text == wanted.text and expression.needed:
                        return index, scene, expression
        index += 1


def main() -> None:
    """Write the pictures, their masks and examples.json."""
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
        entries.append(
            {
                "image": name,
                "expression": expression.text,
                "truth": f"truth/{name}",
                "form": expression.form,
                "scene": index,
            }
        )
        print(index, expression.text)
    (args.out / "examples.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
