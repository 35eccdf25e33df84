"""What FP8 does to the masks of the built-in model, and the memory that calibration takes.

The FP8 graphs run in onnxruntime, which rounds to E4M3 exactly. The bars: a mean IoU of 0.95 with
the masks of the fp32 bundle, and at most one point of mIoU lost.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.fp8.masks import CALIBRATION_SCENES, Scored, agreement, scenes, score
from benchmarks.harness.child_process import ROOT, peak_of
from benchmarks.harness.rows import Row, Task, check_known, of_value
from benchmarks.synthetic.checkpoints import MODELS, parse_blocks, write_model
from rism.calibration import CalibrationOptions, CalibrationReport, Scales, calibrate
from rism.calibration.emulate import emulated
from rism.export import ExportOptions, export_bundle
from rism.runtime.bundle.reader import Bundle

# Which of mini's layers are quantised alone, to see what each kind costs.
PARTS = {
    "double blocks, prompt": "transformer_blocks.*add_*",
    "double blocks, q and k": "transformer_blocks.*attn.to_[qk]",
    "double blocks, v": "transformer_blocks.*attn.to_v",
    "double blocks, out": "transformer_blocks.*attn.to_out.0",
    "double blocks, feed-forward": "transformer_blocks.*.ff*",
    "single blocks, in": "single_transformer_blocks.*.to_qkv_mlp_proj",
    "single blocks, out": "single_transformer_blocks.*.to_out",
}
UNCHANGED = "without FP8"


def measure_masks(task: Task) -> Iterator[Row]:
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
        if task["parts"]:
            bundle = bundles["fp32"]
            scales = _calibrated(bundle, task["samples"], "max").scales
            yield _row(bundle, None, UNCHANGED, "fp32, only", wanted)
            for part, pattern in PARTS.items():
                layers = {n: x for n, x in scales.layers.items() if fnmatchcase(n, pattern)}
                yield _row(bundle, replace(scales, layers=layers), part, "fp32, only", wanted)


def _calibrated(bundle: Bundle, samples: int, rule: str) -> CalibrationReport:
    return calibrate(bundle, scenes(CALIBRATION_SCENES, samples), CalibrationOptions(rule=rule))


def _row(
    bundle: Bundle, scales: Scales | None, name: str, group: str, wanted: Scored, **facts: object
) -> Row:
    found = agreement(score(emulated(bundle, scales), len(wanted.masks)), wanted)
    layers = 0 if scales is None else len(scales.layers)
    facts |= asdict(found) | {"layers": layers}
    return of_value(name, found.mean_iou, unit="", group=group, **facts)


def measure_memory(task: Task) -> Iterator[Row]:
    """Give the peak memory of `rism calibrate` on models with few and with more blocks."""
    for name in check_known("model", task["models"], MODELS):
        for blocks in task["blocks"]:
            with tempfile.TemporaryDirectory() as place:
                yield _calibrate(Path(place), name, blocks, task["samples"])


def _calibrate(place: Path, name: str, blocks: str, samples: int) -> Row:
    checkpoint, bundle = place / "checkpoint", place / "bundle"
    write_model(checkpoint, name, parse_blocks(blocks), max_sequence_length=128)
    options = ExportOptions(precision="bf16", size_level=256, parity="blocks")
    export_bundle(str(checkpoint), bundle, options)
    start = time.perf_counter()
    images = ("--images", str(ROOT / "examples"), "--samples", str(samples))
    peak = peak_of(("-m", "rism", "calibrate", str(bundle), *images, "--rule", "max"))
    return of_value(
        f"{blocks} blocks",
        peak,
        group=name,
        transformer_bytes=(bundle / "transformer.weights").stat().st_size,
        seconds=round(time.perf_counter() - start, 1),
        layers=len(json.loads((bundle / "scales.json").read_text())["layers"]),
    )
