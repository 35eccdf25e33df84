"""`python -m benchmarks.full_size --size 9b --folder DIR`: a whole export, measured.

Writes a checkpoint of random weights in the published layout (once), copies its files on the
same disk (the baseline), exports it in a process of its own, checks the graphs, and compares
time with the copy and peak memory with nothing: 2 x copy + 5 minutes and 3 GB are the bars.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx

from benchmarks.harness.measure import environment
from benchmarks.synthetic.flux2_checkpoint import SIZES, write_checkpoint
from benchmarks.synthetic.step1x_checkpoint import STEP1X, write_diffusers, write_original

_BUFFER = 16 * 2**20
# By name: what it is called, and how it is written.
_MODELS: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{
        name: (f"FLUX.2-klein {name}", partial(write_checkpoint, shape=shape))
        for name, shape in SIZES.items()
    },
    "step1x": (
        "Step1X-Edit v1.0, makers' layout",
        partial(write_original, shape=STEP1X, version="1.0"),
    ),
    "step1x-v1.2": (
        "Step1X-Edit v1.2, diffusers layout",
        partial(write_diffusers, shape=STEP1X, version="1.2"),
    ),
}


def main() -> None:
    """Measure one export."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--size", choices=[*_MODELS], default="9b")
    parser.add_argument(
        "--folder", type=Path, required=True, help="on a disk with room: 9b 70 GB, step1x 83 GB"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--capture", default="vectors")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--keep", action="store_true", help="leave the bundle there")
    args = parser.parse_args()
    called, write = _MODELS[args.size]
    checkpoint = args.folder / f"checkpoint-{args.size}"
    bundle = args.folder / f"bundle-{args.size}"
    if not checkpoint.exists():
        write(checkpoint)
    files = sorted(checkpoint.rglob("*.safetensors"))
    copy_s = _copy(files, args.folder / "copy.tmp")
    shutil.rmtree(bundle, ignore_errors=True)
    told = args.folder / "peak.txt"
    command = [sys.executable, "-m", "benchmarks.harness.with_peak", str(told), "export"]
    command += ["--model", str(checkpoint)]
    command += ["-o", str(bundle), "--precision", args.precision, "--capture", args.capture]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    export_s = time.perf_counter() - start
    peak = int(told.read_text())
    for graph in sorted(bundle.glob("*.onnx")):
        onnx.checker.check_model(str(graph))
    read = sum(file.stat().st_size for file in files)
    result = {
        "checkpoint": f"{called}, random bfloat16 weights, published layout",
        "precision": args.precision,
        "capture": args.capture,
        "checkpoint_bytes": read,
        "bundle_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
        "copy_s": round(copy_s, 1),
        "export_s": round(export_s, 1),
        "export_over_copy": round(export_s / copy_s, 2),
        "allowed_s": round(2 * copy_s + 300, 1),
        "peak_memory_bytes": peak,
        "allowed_memory_bytes": 3_000_000_000,
        "checker": "every graph passes onnx.checker",
        "parity": json.loads((bundle / "manifest.json").read_text())["parity"],
        "environment": environment(),
    }
    print(
        f"{args.size} {args.precision}: read {read / 1e9:.1f} GB, copy {copy_s:.0f} s, export "
        f"{export_s:.0f} s (allowed {2 * copy_s + 300:.0f}), peak {peak / 1e9:.2f} GB (allowed 3)"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if not args.keep:
        shutil.rmtree(bundle)


def _copy(files: list[Path], target: Path) -> float:
    """Copy each file to the disk for good, one at a time, and return the seconds."""
    start = time.perf_counter()
    for file in files:
        with file.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _BUFFER)
            copy.flush()
            os.fsync(copy.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


if __name__ == "__main__":
    main()
