"""Masks of a quantised transformer against those of another, and against the truth."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rism.calibration.samples import CalibrationSample
from rism.evaluation.scenes.judged import judged_scene
from rism.runtime import Segmenter

# Far from the scenes that are scored, and like them never trained on.
CALIBRATION_SCENES = 10_000

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """Masks on scenes 0 to N - 1, and the IoU of each with the truth."""

    masks: tuple[Mask, ...]
    truth_ious: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """Masks against those of another graph, and against the truth.

    Attributes:
        mean_iou, lowest_iou: with the other graph's masks.
        miou: with the truth, percent.
        lost_points: of the other graph's miou.
    """

    mean_iou: float
    lowest_iou: float
    miou: float
    lost_points: float


def scenes(first: int, count: int) -> list[CalibrationSample]:
    """Return images with expressions that the model was not trained on."""
    found = (judged_scene(index) for index in range(first, first + count))
    return [CalibrationSample(scene.image_hwc, expression.text) for scene, expression in found]


def score(segmenter: Segmenter, count: int) -> Scored:
    """Segment scenes 0 to `count` - 1 by the published method."""
    masks, ious = [], []
    for index in range(count):
        scene, expression = judged_scene(index)
        # Contours along the image's edges would hide what becomes of the tokens.
        mask = segmenter.segment(scene.image_hwc, expression.text, paper=True).mask
        masks.append(mask)
        ious.append(_iou(mask, scene.objects[expression.target].mask_hw))
    return Scored(tuple(masks), tuple(ious))


def agreement(found: Scored, wanted: Scored) -> Agreement:
    """Compare masks of one graph with those of another."""
    ious = [_iou(one, other) for one, other in zip(found.masks, wanted.masks, strict=True)]
    miou, other_miou = (100 * float(np.mean(each.truth_ious)) for each in (found, wanted))
    lost = round(other_miou - miou, 2)
    return Agreement(round(float(np.mean(ious)), 4), round(min(ious), 4), round(miou, 2), lost)


def _iou(one: Mask, other: Mask) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
