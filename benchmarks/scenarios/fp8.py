"""What FP8 does to the masks of the built-in model.

The FP8 graphs run in onnxruntime, which rounds to E4M3 exactly. The bars: a mean IoU of 0.95 with
the masks of the fp32 bundle, and at most one point of mIoU lost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.fp8.masks import CALIBRATION_SCENES, Scored, agreement, scenes, score
from benchmarks.harness.rows import Row, Task, of_value
from rism.calibration import CalibrationOptions, CalibrationReport, Scales, calibrate
from rism.calibration.emulate import emulated
from rism.export import ExportOptions, export_bundle
from rism.runtime.bundle.reader import Bundle

UNCHANGED = "without FP8"


def measure(task: Task) -> Iterator[Row]:
    """Give the mean IoU with the fp32 masks, by precision and rule; facts are in the notes."""
    with tempfile.TemporaryDirectory() as place:
        bundles: dict[str, Bundle] = {}
        for precision in dict.fromkeys(("fp32", *task["precisions"])):
            folder = Path(place) / precision
            export_bundle("mini", folder, ExportOptions(precision=precision))
            bundles[precision] = Bundle.open(folder)
        wanted = score(emulated(bundles["fp32"], None), task["scenes"])
        for precision in task["precisions"]:
            bundle = bundles[precision]
            yield _row(bundle, None, UNCHANGED, precision, wanted)
            for rule in task["rules"]:
                start = time.perf_counter()
                report = _calibrated(bundle, task["samples"], rule)
                seconds = round(time.perf_counter() - start, 1)
                worst = {
                    "worst_activation_error": max(x.activation_error or 0 for x in report.layers),
                    "worst_weight_error": max(x.weight_error or 0 for x in report.layers),
                }
                scales = report.scales
                facts = {"calibration_s": seconds, "percentile": scales.percentile} | worst
                yield _row(bundle, scales, rule, precision, wanted, **facts)


def _calibrated(bundle: Bundle, samples: int, rule: str) -> CalibrationReport:
    return calibrate(bundle, scenes(CALIBRATION_SCENES, samples), CalibrationOptions(rule=rule))


def _row(
    bundle: Bundle, scales: Scales | None, name: str, group: str, wanted: Scored, **facts: object
) -> Row:
    found = agreement(score(emulated(bundle, scales), len(wanted.masks)), wanted)
    layers = 0 if scales is None else len(scales.layers)
    facts |= asdict(found) | {"layers": layers}
    return of_value(name, found.mean_iou, unit="", group=group, **facts)
