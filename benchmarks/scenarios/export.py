"""A whole export in a process of its own: time and memory, against reading the same weights.

The baseline is a plain copy of the files. The checkpoint, of random weights, is written first; full
sizes need room for it, the copy and the bundle in TMPDIR.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.harness.child_process import time_and_peak
from benchmarks.harness.rows import EXAMPLE, Row, Task, check_known, of_value, timed
from benchmarks.synthetic.checkpoints import MODELS, parse_blocks, write_model
from benchmarks.synthetic.flux2_checkpoint import KleinShape, write_checkpoint
from rism.export.families.find import find_checkpoint
from rism.runtime import Segmenter

BASELINE, OURS = "copy", "rism export"
# A vocabulary of the tokenizer that is written with it, and half a gigabyte of blocks.
SHAPES = {
    "small": KleinShape(2, 6, 12, 64, 384, 1152, text_blocks=12, text_heads=6, text_kv_heads=2,
                        text_head_dim=64, vocabulary=8192, tied=True),
}  # fmt: skip
_SETTINGS = {"text_encoder_out_layers": [3, 6, 9], "feature_block": 5, "size_level": 512}


def measure(task: Task) -> list[Row]:
    """Measure both, a process each run, without warm-up; memory is a group of its own."""
    with tempfile.TemporaryDirectory() as place:
        scratch, count = Path(place), itertools.count()
        checkpoint = _checkpoint(task["shape"], task["blocks"], scratch)
        bundles: list[Path] = []

        def copy() -> tuple[str, ...]:
            target = str(scratch / f"copy-{next(count)}")
            return ("-m", "benchmarks.baselines.copy_files", str(checkpoint), target)

        def export() -> tuple[str, ...]:
            bundles.append(scratch / f"bundle-{next(count)}")
            start = ("-m", "rism", "export", "--model", str(checkpoint), "-o", str(bundles[-1]))
            return (*start, "-q", *task["arguments"])

        found = time_and_peak({BASELINE: copy, OURS: export}, runs=task.runs)
        facts = _facts(checkpoint, bundles[-1], run=task["run"])
    rows = [timed(name, timing, group="time", **facts) for name, (timing, _) in found.items()]
    return rows + [of_value(name, peak, group="memory") for name, (_, peak) in found.items()]


def _facts(checkpoint: Path, bundle: Path, *, run: bool) -> dict[str, Any]:
    """Check every graph, and say what was written; with `run`, segment an image with it."""
    for graph in sorted(bundle.glob("*.onnx")):
        onnx.checker.check_model(str(graph))
    facts: dict[str, Any] = {
        "checkpoint_bytes": sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors")),
        "bundle_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
        "parity": json.loads((bundle / "manifest.json").read_text())["parity"],
    }
    if run:
        start = time.perf_counter()
        segmenter = Segmenter.from_bundle(bundle, provider="cpu", verify=False)
        loaded = time.perf_counter()
        result = segmenter.segment(EXAMPLE, "the green van")
        facts |= {
            "load_s": round(loaded - start, 1),
            "run_s": round(time.perf_counter() - loaded, 1),
            "tokens": result.plan.tokens,
            "finite": bool(np.isfinite(result.score_map).all()),
        }
    return facts


def _checkpoint(name: str, blocks: str, scratch: Path) -> Path:
    check_known("shape", [name], ("mini", *SHAPES, *MODELS))
    folder = scratch / "checkpoint"
    if name == "mini":
        return find_checkpoint("mini").folder
    if name in SHAPES:
        write_checkpoint(folder, SHAPES[name])
        (folder / "rism.json").write_text(json.dumps(_SETTINGS))
    else:
        write_model(folder, name, parse_blocks(blocks))
    return folder
