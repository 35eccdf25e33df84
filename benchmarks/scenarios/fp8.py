"""What FP8 and NVFP4 do to the masks of the built-in model.

The graphs run in onnxruntime, which rounds to E4M3 exactly; NVFP4 is written out in float32. FP8's
bars: a mean IoU of 0.95 with the masks of the fp32 bundle, and at most one point of mIoU lost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness.rows import Row, Task, of_value
from rism.calibration import CalibrationOptions, Scales, calibrate
from rism.calibration.emulate import emulated
from rism.calibration.samples import CalibrationSample
from rism.evaluation.scenes.judged import judged_scene
from rism.export import ExportOptions, export_bundle
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.names import ENGINES_ALONE

UNCHANGED = "without FP8"
# Far from the scenes that are scored, and like them never trained on.
CALIBRATION_SCENES = 10_000

Mask = npt.NDArray[np.bool_]


def measure(task: Task) -> Iterator[Row]:
    """Give the mean IoU with the fp32 masks, by precision and rule; facts are in the notes."""
    noisy_grid = Bundle.open(resolve_bundle()).manifest.method.noisy_grid
    with tempfile.TemporaryDirectory() as place:
        bundles: dict[str, Bundle] = {}
        for precision in dict.fromkeys(("fp32", *task["precisions"])):
            folder = Path(place) / precision
            options = ExportOptions(precision=precision, noisy_grid=noisy_grid)
            export_bundle("mini", folder, options)
            bundles[precision] = Bundle.open(folder)
        wanted = score(emulated(bundles["fp32"], None), task["scenes"])
        for precision in task["precisions"]:
            bundle = bundles[precision]
            yield _row(bundle, None, UNCHANGED, precision, wanted)
            for rule in task["rules"]:
                start = time.perf_counter()
                samples = scenes(CALIBRATION_SCENES, task["samples"])
                report = calibrate(bundle, samples, CalibrationOptions(rule=rule))
                seconds = round(time.perf_counter() - start, 1)
                worst = {
                    "worst_activation_error": max(x.activation_error or 0 for x in report.layers),
                    "worst_weight_error": max(x.weight_error or 0 for x in report.layers),
                }
                scales = report.scales
                facts = {"calibration_s": seconds, "percentile": scales.percentile} | worst
                yield _row(bundle, scales, rule, precision, wanted, **facts)


def measure_nvfp4(task: Task) -> Iterator[Row]:
    """Give the mean IoU with the fp32 masks of weights in NVFP4, and of activations too."""
    bundle = Bundle.open(resolve_bundle())
    wanted = score(emulated(bundle, None), task["scenes"])
    scales = calibrate(bundle, scenes(CALIBRATION_SCENES, task["samples"])).scales
    for precision in ENGINES_ALONE[1:]:
        found = agreement(score(emulated(bundle, scales, precision), task["scenes"]), wanted)
        yield of_value(precision, found.mean_iou, unit="", **asdict(found))


def _row(
    bundle: Bundle, scales: Scales | None, name: str, group: str, wanted: Scored, **facts: object
) -> Row:
    found = agreement(score(emulated(bundle, scales), len(wanted.masks)), wanted)
    layers = 0 if scales is None else len(scales.layers)
    facts |= asdict(found) | {"layers": layers}
    return of_value(name, found.mean_iou, unit="", group=group, **facts)


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
