"""`python -m benchmarks.fp8.memory`: calibrating takes the memory of a block.

Models of random weights at the real widths of FLUX.2-klein 4B and Step1X-Edit, with two blocks
and with eight of the transformer's, are exported in bf16 and calibrated, each in a process of its
own: peak memory is the kernel's high-water mark, mapped weights included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import environment
from benchmarks.synthetic.flux2_checkpoint import SIZES, write_checkpoint
from benchmarks.synthetic.step1x_checkpoint import SMALL, STEP1X, write_original
from rism.export import ExportOptions, export_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"
_LEVEL = 256


def write_klein(folder: Path, double: int, single: int) -> None:
    """Write a klein 4B of a few blocks, with three of its language model."""
    shape = replace(SIZES["4b"], double=double, single=single, text_blocks=4)
    write_checkpoint(folder, shape)
    settings = {
        "text_encoder_out_layers": [1, 2, 3],
        "feature_block": 1,
        "max_sequence_length": 128,
    }
    (folder / "rism.json").write_text(json.dumps(settings))


def write_step1x(folder: Path, double: int, single: int) -> None:
    """Write a Step1X-Edit 1.0 of a few blocks, with its connector and one of its encoder's."""
    shape = replace(
        STEP1X,
        double=double,
        single=single,
        vision_depth=2,
        vision_full=(1,),
        text_blocks=1,
        text_shards=1,
        vocabulary=SMALL.vocabulary,
    )
    write_original(folder, shape, version="1.0")
    (folder / "rism.json").write_text(json.dumps({"feature_block": 1}))


MODELS: dict[str, Callable[[Path, int, int], None]] = {
    "klein-4b": write_klein,
    "step1x-1.0": write_step1x,
}
# Double-stream and single-stream blocks; the last one is mostly not in the graph.
BLOCKS = ((1, 2), (4, 5))


def measure(name: str, double: int, single: int, *, samples: int, rule: str) -> dict[str, Any]:
    """Export and calibrate one model."""
    with tempfile.TemporaryDirectory() as place:
        checkpoint, bundle = Path(place) / "checkpoint", Path(place) / "bundle"
        MODELS[name](checkpoint, double, single)
        options = ExportOptions(precision="bf16", size_level=_LEVEL, parity="blocks")
        export_bundle(str(checkpoint), bundle, options)
        told = Path(place) / "peak.txt"
        command = [sys.executable, "-m", "benchmarks.harness.with_peak", str(told), "calibrate"]
        command += [str(bundle), "--images", str(EXAMPLES), "--samples", str(samples)]
        start = time.perf_counter()
        subprocess.run([*command, "--rule", rule], check=True)
        return {
            "blocks": [double, single],
            "transformer_bytes": (bundle / "transformer.weights").stat().st_size,
            "peak_memory_bytes": int(told.read_text()),
            "seconds": round(time.perf_counter() - start, 1),
            "layers": len(json.loads((bundle / "scales.json").read_text())["layers"]),
        }


def main() -> None:
    """Measure each model with few and with more blocks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fp8.memory", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there; it keeps the others")
    args = parser.parse_args()
    names = args.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"model '{unknown[0]}' is not known, expected some of {','.join(MODELS)}")
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    found = results.setdefault("memory", {})
    for name in names:
        found[name] = [
            measure(name, *blocks, samples=args.samples, rule="max") for blocks in BLOCKS
        ]
        for row in found[name]:
            print(
                f"{name} {row['blocks'][0]} + {row['blocks'][1]} blocks: weights "
                f"{row['transformer_bytes'] / 1e9:.2f} GB, peak "
                f"{row['peak_memory_bytes'] / 1e9:.2f} GB, {row['seconds']} s",
                flush=True,
            )
        if args.json:
            results["memory_environment"] = environment()
            args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
