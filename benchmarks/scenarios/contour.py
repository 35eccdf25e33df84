"""A map on the token grid brought to the image: along its edges, and bilinearly.

The map is what a perfect one would be: the share of each token that the true mask covers.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harness.errors import DiffersError
from benchmarks.harness.rows import EXAMPLE, Row, Task, image_size, time_ways
from rism.evaluation.metrics.iou import overlap
from rism.runtime import load_image
from rism.runtime.image.geometry import Plan
from rism.runtime.method.upsampling import guided_upsample, upsample

BILINEAR, GUIDED = "bilinear", "guided"

Mask = npt.NDArray[np.bool_]


def measure(task: Task) -> Iterator[Row]:
    """Measure every grid, a group each, and say how near each mask is to the true one.

    Raises:
        DiffersError: the contour is not nearer than bilinear: its time means nothing.
    """
    size_wh = image_size(task["size"])
    truth = Image.open(EXAMPLE.parent / "truth" / EXAMPLE.name).convert("L")
    image = Image.fromarray(load_image(EXAMPLE)).resize(size_wh, Image.Resampling.BOX)
    image_hwc = np.asarray(image)
    true_hw = np.asarray(truth.resize(size_wh, Image.Resampling.BOX)) > 127
    for grid in task["grids"]:
        yield from _grid(task, grid, image_hwc, true_hw)


def _grid(task: Task, grid: str, image_hwc: npt.NDArray[np.uint8], true_hw: Mask) -> list[Row]:
    columns, tall = image_size(grid)
    resized = (16 * columns, 16 * tall)
    plan = Plan(true_hw.shape[::-1], resized, (0, 0, *resized), (tall, columns))
    covered = Image.fromarray(true_hw.astype(np.float32))
    map_hw = np.asarray(covered.resize((columns, tall), Image.Resampling.BOX)) - np.float32(0.5)
    ways: dict[str, Callable[[], Mask]] = {
        BILINEAR: lambda: np.asarray(upsample(map_hw, plan) > 0),
        GUIDED: lambda: guided_upsample(map_hw, image_hwc, plan) > 0,
    }
    found = {name: overlap(way(), true_hw) for name, way in ways.items()}
    near = {name: each.boundary_iou for name, each in found.items()}
    if near[GUIDED] <= near[BILINEAR]:
        raise DiffersError(
            f"the guided contour's boundary IoU is {near[GUIDED]:.3f}, expected more than the "
            f"bilinear one's {near[BILINEAR]:.3f}: its time means nothing"
        )
    notes = {
        name: {"iou": round(each.iou, 4), "boundary_iou": round(each.boundary_iou, 4)}
        for name, each in found.items()
    }
    return time_ways(task, ways, group=f"{grid} tokens", notes=notes)
