"""What weights in few bits do to the masks of the built-in model.

The bars: a mean IoU with the masks of the fp32 bundle of 0.99 in int8 and of 0.97 in int4, and at
most 0.5 and 1.5 points of mIoU lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.rows import Row, Task, of_value
from benchmarks.scenarios.fp8 import CALIBRATION_SCENES, agreement, scenes, score
from rism.calibration import calibrate
from rism.calibration.activation_power import power_to_bytes
from rism.export import ExportOptions, export_bundle
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle

WEIGHED, ALIKE = "weighed by activations", "all weights alike"


def measure(task: Task) -> Iterator[Row]:
    """Give the mean IoU with the fp32 masks, by precision, without and with activations."""
    bundle = Bundle.open(resolve_bundle())
    wanted = score(Segmenter.from_bundle(bundle.path, provider="cpu"), task["scenes"])
    with tempfile.TemporaryDirectory() as place:
        power = Path(place) / "activations.npz"
        report = calibrate(bundle, scenes(CALIBRATION_SCENES, task["samples"]))
        power.write_bytes(power_to_bytes(report.power))
        for precision in task["precisions"]:
            for name, activations in ((ALIKE, None), (WEIGHED, power)):
                options = ExportOptions(
                    precision=precision, text_precision=precision, activations=activations
                )
                written = export_bundle("mini", Path(place) / f"{precision}-{name}", options)
                segmenter = Segmenter.from_bundle(written.path, provider="cpu")
                found = agreement(score(segmenter, task["scenes"]), wanted)
                errors = [each.weight_error or 0 for each in written.rounded]
                facts = asdict(found) | {
                    "layers": sum(each.kept is None for each in written.rounded),
                    "worst_weight_error": round(max(errors), 4),
                    "bytes": written.size_bytes,
                }
                yield of_value(name, found.mean_iou, unit="", group=precision, **facts)
