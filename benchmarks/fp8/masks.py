"""`python -m benchmarks.fp8.masks`: what FP8 does to the masks of the built-in model.

Exports `mini` in fp32, bf16 and fp16, calibrates each by every rule on scenes of its own, and runs
the FP8 graphs on other scenes with onnxruntime, which rounds to E4M3 exactly. Masks are compared
with those of the fp32 bundle and with the truth; `--modelopt PYTHON` does the same with the
graph that modelopt makes. The bars: a mean IoU of 0.95 with the fp32 masks, and at most one point
of mIoU lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks.harness.measure import environment
from rism.calibration import CalibrationOptions, Scales, calibrate
from rism.calibration.emulate import emulated
from rism.calibration.layers import find_layers
from rism.calibration.open_graph import open_transformer
from rism.calibration.samples import CalibrationSample, prepare
from rism.evaluation.scenes.judged import judged_scene
from rism.export import ExportOptions, export_bundle
from rism.runtime import Segmenter
from rism.runtime.bundle.reader import Bundle

__all__ = ["CALIBRATION_SCENES", "Agreement", "Scored", "agreement", "scenes", "score"]

# Far from the scenes that are scored, and like them never trained on.
CALIBRATION_SCENES = 10_000
MODELOPT = Path(__file__).parent / "modelopt.py"
RULES = {rule: CalibrationOptions(rule=rule) for rule in ("max", "percentile", "mask")}
# Which of mini's layers are quantised alone, to tell what each kind costs.
PARTS = {
    "double blocks, prompt": "transformer_blocks.*add_*",
    "double blocks, q and k": "transformer_blocks.*attn.to_[qk]",
    "double blocks, v": "transformer_blocks.*attn.to_v",
    "double blocks, out": "transformer_blocks.*attn.to_out.0",
    "double blocks, feed-forward": "transformer_blocks.*.ff*",
    "single blocks, in": "single_transformer_blocks.*.to_qkv_mlp_proj",
    "single blocks, out": "single_transformer_blocks.*.to_out",
}

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
    """Pictures with expressions that the model was not trained on."""
    found = (judged_scene(index) for index in range(first, first + count))
    return [CalibrationSample(scene.image_hwc, expression.text) for scene, expression in found]


def score(segmenter: Segmenter, count: int) -> Scored:
    """Segment scenes 0 to `count` - 1 by the published method."""
    masks, ious = [], []
    for index in range(count):
        scene, expression = judged_scene(index)
        # Contours along the picture's edges would hide what becomes of the tokens.
        mask = segmenter.segment(scene.image_hwc, expression.text, paper=True).mask
        masks.append(mask)
        ious.append(_iou(mask, scene.objects[expression.target].mask_hw))
    return Scored(tuple(masks), tuple(ious))


def agreement(found: Scored, wanted: Scored) -> Agreement:
    """Compare masks of one graph with those of another."""
    ious = _ious(found, wanted)
    miou, whole = (100 * float(np.mean(each.truth_ious)) for each in (found, wanted))
    return Agreement(
        round(float(np.mean(ious)), 4), round(min(ious), 4), round(miou, 2), round(whole - miou, 2)
    )


def _ious(found: Scored, wanted: Scored) -> list[float]:
    return [_iou(one, other) for one, other in zip(found.masks, wanted.masks, strict=True)]


def _iou(one: Mask, other: Mask) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def measure(folder: Path, wanted: Scored, *, samples: int, count: int) -> dict[str, Any]:
    """Calibrate one bundle by every rule, and score each."""
    bundle = Bundle.open(folder)
    found: dict[str, Any] = {
        "without FP8": asdict(agreement(score(emulated(bundle, None), count), wanted))
    }
    for rule, options in RULES.items():
        start = time.perf_counter()
        report = calibrate(bundle, scenes(CALIBRATION_SCENES, samples), options)
        seconds = time.perf_counter() - start
        found[rule] = {
            "percentile": report.scales.percentile,
            "calibration_s": round(seconds, 1),
            "layers": len(report.scales.layers),
            "worst_activation_error": max(layer.activation_error or 0 for layer in report.layers),
            "worst_weight_error": max(layer.weight_error or 0 for layer in report.layers),
        } | asdict(agreement(score(emulated(bundle, report.scales), count), wanted))
        _say(f"{bundle.manifest.precision.compute} {rule}", found[rule])
    return found


def without(folder: Path, wanted: Scored, *, samples: int, count: int) -> dict[str, Any]:
    """Quantise a part of the layers at a time: what each part costs the masks."""
    bundle = Bundle.open(folder)
    scales = calibrate(bundle, scenes(CALIBRATION_SCENES, samples)).scales
    found = {}
    for part, pattern in PARTS.items():
        some = {n: scale for n, scale in scales.layers.items() if fnmatchcase(n, pattern)}
        only = Scales(**(asdict(scales) | {"layers": some}))
        found[part] = asdict(agreement(score(emulated(bundle, only), count), wanted))
        _say(f"only {part}", found[part])
    return found


def modelopt(
    python: str, folder: Path, wanted: Scored, *, samples: int, count: int
) -> dict[str, Any]:
    """Quantise the fp32 graph with modelopt, as it comes and without the layers that we keep."""
    bundle = Bundle.open(folder)
    scales = calibrate(bundle, scenes(CALIBRATION_SCENES, samples)).scales
    kept = [
        f"^{layer.node.name}$"  # modelopt takes patterns
        for layer in find_layers(open_transformer(bundle).model)
        if layer.name in scales.kept
    ]
    ours = _ious(score(emulated(bundle, scales), count), wanted)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        feeds = Path(place) / "feeds.npz"
        _write_feeds(bundle, feeds, samples)
        for name, excluded in (("as it comes", []), ("our layers", kept)):
            output = Path(place) / f"{len(found)}.onnx"
            graph = bundle.file(bundle.manifest.graph("transformer.vectors").file)
            command = [python, str(MODELOPT), str(graph), str(feeds), str(output), *excluded]
            told = subprocess.run(command, check=True, capture_output=True, text=True)
            made = ir.load(output)
            own = score(emulated(bundle, None, edit=partial(_replace, made=made)), count)
            gained = np.subtract(_ious(own, wanted), ours)
            found[name] = {
                "iou_over_ours": round(float(gained.mean()), 4),
                "standard_error": round(float(gained.std() / np.sqrt(count)), 4),
                **json.loads(told.stdout.splitlines()[-1]),
                "layers": _quantised(made),
                "file_bytes": sum(f.stat().st_size for f in Path(place).glob(f"{output.name}*")),
            } | asdict(agreement(own, wanted))
            _say(f"modelopt {name}", found[name])
    return found


def _replace(model: ir.Model, made: ir.Model) -> None:
    model.graph = made.graph


def _quantised(model: ir.Model) -> int:
    producers = (
        [value.producer() for value in node.inputs if value is not None]
        for node in model.graph
        if node.op_type == "MatMul"
    )
    return sum(
        all(node is not None and node.op_type == "DequantizeLinear" for node in pair)
        for pair in producers
    )


def _write_feeds(bundle: Bundle, file: Path, count: int) -> None:
    """Feeds of scenes that have one size: modelopt takes them joined along the first axis."""
    with tempfile.TemporaryDirectory() as place:
        ready = prepare(bundle, scenes(CALIBRATION_SCENES, 3 * count), Path(place))
        feeds = [ready.feeds(number) for number in range(len(ready))]
    sizes = [each["clean_latents"].shape for each in feeds]
    common = max(set(sizes), key=sizes.count)
    alike = [each for each, size in zip(feeds, sizes, strict=True) if size == common][:count]
    inputs = bundle.manifest.graph("transformer.vectors").inputs
    joined: dict[str, Any] = {
        spec.name: np.concatenate([each[name] for each in alike]) for name, spec in inputs.items()
    }
    np.savez(file, count=np.array(len(alike)), **joined)


def _say(what: str, row: dict[str, Any]) -> None:
    print(
        f"{what:<28} IoU with fp32's masks {row['mean_iou']:.4f} (lowest {row['lowest_iou']:.4f}), "
        f"mIoU {row['miou']:.2f}, lost {row['lost_points']:+.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and store the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fp8.masks", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="to score")
    parser.add_argument("--samples", type=int, default=32, help="to calibrate on")
    parser.add_argument("--precisions", default="fp32,bf16,fp16")
    parser.add_argument("--bundles", type=Path, help="a folder with mini's bundles by precision")
    parser.add_argument("--modelopt", metavar="PYTHON", help="an interpreter that has modelopt")
    parser.add_argument("--json", type=Path, help="write the figures there; it keeps the others")
    args = parser.parse_args(arguments)
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = args.bundles or Path(place)
        for precision in dict.fromkeys(("fp32", *args.precisions.split(","))):
            if not (folder / precision).exists():
                export_bundle("mini", folder / precision, ExportOptions(precision=precision))
        wanted = score(emulated(Bundle.open(folder / "fp32"), None), args.scenes)
        sizes = {"samples": args.samples, "count": args.scenes}
        masks = {
            precision: measure(folder / precision, wanted, **sizes)
            for precision in args.precisions.split(",")
        }
        results["masks"] = {"scenes": args.scenes, "calibrated_on": args.samples} | masks
        results["parts, fp32, max"] = without(folder / "fp32", wanted, **sizes)
        if args.modelopt:
            results["modelopt, fp32"] = modelopt(args.modelopt, folder / "fp32", wanted, **sizes)
    results["environment"] = environment(packages=("onnx-ir",))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
