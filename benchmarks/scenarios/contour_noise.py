"""How near a contour comes to the true one where the map itself is noisy.

Maps are true token fractions, less a half, with normal noise. Drawn scenes have plain colours; the
others are photographs cut out in the shape of our drawings, in front of other photographs, all of
which scikit-image and scikit-learn ship.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harness.rows import Row, Task, image_size, of_value
from mini.grounds import HELD_OUT_PHOTOS, PHOTOS, photo_crop, photographs
from rism.evaluation.metrics.iou import overlap
from rism.evaluation.scenes.judged import judged_scene
from rism.evaluation.scenes.kinds import COLOURS, KIND_NAMES, draw_sprite
from rism.runtime.image.geometry import Plan
from rism.runtime.method.upsampling import guided_upsample, noise_level, upsample

BILINEAR, GUIDED = "bilinear", "guided"
Image8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def measure(task: Task) -> Iterator[Row]:
    """Give the mean boundary IoU of both ways, a group for each set, grid and noise."""
    draw: dict[str, Callable[[int, tuple[int, int]], tuple[Image8, Mask]]] = {
        "drawn scenes": drawn_scene,
        "photographs": cut_out,
    }
    size_wh = image_size(task["size"])
    for name, grid, percent in product(draw, task["grids"], task["percents"]):
        columns, rows = image_size(grid)
        found: dict[str, list[float]] = {BILINEAR: [], GUIDED: []}
        levels = []
        for index in range(task["images"]):
            image_hwc, true_hw = draw[name](index, size_wh)
            resized = (16 * columns, 16 * rows)
            plan = Plan(true_hw.shape[::-1], resized, (0, 0, *resized), (rows, columns))
            covered = Image.fromarray(true_hw.astype(np.float32))
            shares = np.asarray(covered.resize((columns, rows), Image.Resampling.BOX))
            grain = np.random.default_rng(index).normal(0, percent / 100, shares.shape)
            map_hw = (shares - 0.5 + grain).astype(np.float32)
            levels.append(noise_level(map_hw))
            for way, up in (
                (BILINEAR, upsample(map_hw, plan)),
                (GUIDED, guided_upsample(map_hw, image_hwc, plan)),
            ):
                found[way].append(overlap(np.asarray(up > 0), true_hw).boundary_iou)
        for way, values in found.items():
            yield of_value(
                way,
                float(np.mean(values)),
                unit="",
                group=f"{name}, {grid} tokens, noise {percent} %",
                noise_level=round(float(np.mean(levels)), 3),
            )


def drawn_scene(index: int, size_wh: tuple[int, int]) -> tuple[Image8, Mask]:
    """A scene of the evaluation, and one object's mask, at a size."""
    scene, expression = judged_scene(index)
    image = Image.fromarray(scene.image_hwc).resize(size_wh, Image.Resampling.BICUBIC)
    mask = Image.fromarray(scene.objects[expression.target].mask_hw.astype(np.float32))
    true_hw = np.asarray(mask.resize(size_wh, Image.Resampling.BILINEAR)) > 0.5
    return np.ascontiguousarray(image), true_hw


def cut_out(index: int, size_wh: tuple[int, int]) -> tuple[Image8, Mask]:
    """One photograph in the shape of a drawing in front of another."""
    rng = np.random.default_rng([index, 31])
    photos = _photos()
    behind, inside = (
        photo_crop(rng, photos[int(place)][0], size_wh).astype(np.float32)
        for place in rng.choice(len(photos), 2, replace=False)
    )
    side = int(min(size_wh) * rng.uniform(0.3, 0.9))
    kind = KIND_NAMES[index % len(KIND_NAMES)]
    shade = next(iter(COLOURS.values()))[0]
    shape = draw_sprite(kind, shade, size_px=side, flip=bool(index % 2))[..., 3]
    alpha = np.zeros(size_wh[::-1], np.float32)
    tall, wide = (min(*each) for each in zip(shape.shape, alpha.shape, strict=True))
    x, y = int(rng.integers(size_wh[0] - wide + 1)), int(rng.integers(size_wh[1] - tall + 1))
    alpha[y : y + tall, x : x + wide] = shape[:tall, :wide] / np.float32(255)
    mixed = behind + alpha[..., None] * (inside - behind)
    return (mixed + 0.5).astype(np.uint8), alpha > 0.5


@cache
def _photos() -> list[tuple[Image8, tuple[str, ...]]]:
    return photographs(PHOTOS | HELD_OUT_PHOTOS)
