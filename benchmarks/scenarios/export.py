"""A whole export in a process of its own: time and memory, against loading and saving in PyTorch.

The full sizes are `python -m benchmarks.full_size`'s; here a checkpoint is made on the spot.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from benchmarks.harness.errors import ConfigError
from benchmarks.harness.measure import Timing
from benchmarks.harness.rows import Job, Row, of_size, timed
from benchmarks.scenarios.processes import peak_of
from benchmarks.synthetic.flux2_checkpoint import SIZES, Shape, write_checkpoint
from rism.export.families.find import find_checkpoint

__all__ = ["measure"]

BASELINE, OURS = "load and save, PyTorch", "rism export"
# A vocabulary of the tokenizer that is written with it, and half a gigabyte of blocks.
SHAPES = {
    "small": Shape(2, 6, 12, 64, 384, 1152, text_blocks=12, text_heads=6, text_kv_heads=2,
                   text_head_dim=64, vocabulary=8192, tied=True),
    "large": Shape(2, 6, 24, 128, 2560, 9728, text_blocks=28, vocabulary=8192, tied=True),
}  # fmt: skip

_SETTINGS = {"text_encoder_out_layers": [3, 6, 9], "feature_block": 5, "size_level": 512}


def measure(job: Job) -> list[Row]:
    """Measure both, a process a run; there is no warm-up, and memory is a group of its own."""
    name = job.get("shape", str)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        checkpoint = _checkpoint(name, scratch)
        nbytes = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
        count = iter(range(10**6))

        def load_and_save() -> tuple[str, ...]:
            target = str(scratch / f"saved-{next(count)}")
            return ("-m", "benchmarks.baselines.load_and_save", str(checkpoint), target)

        def export() -> tuple[str, ...]:
            target = str(scratch / f"bundle-{next(count)}")
            return (
                *("-m", "rism", "export", "--model", str(checkpoint), "-o", target, "-q"),
                *("--parity", job.get("parity", str)),
            )

        commands = {BASELINE: load_and_save, OURS: export}
        seconds: dict[str, list[float]] = {each: [] for each in commands}
        peaks: dict[str, list[int]] = {each: [] for each in commands}
        for _ in range(job.runs):
            for each, command in commands.items():
                start = time.perf_counter()
                peaks[each].append(peak_of(command()))
                seconds[each].append(time.perf_counter() - start)
    rows = [
        timed(each, Timing(tuple(some)), group="time", checkpoint_bytes=nbytes)
        for each, some in seconds.items()
    ]
    return rows + [of_size(each, max(some), group="memory") for each, some in peaks.items()]


def _checkpoint(name: str, scratch: Path) -> Path:
    if name == "mini":
        return find_checkpoint("mini").folder
    if name not in SHAPES and name not in SIZES:
        known = ", ".join(("mini", *SHAPES, *SIZES))
        raise ConfigError(f"shape '{name}' is not known, expected one of {known}")
    folder = scratch / "checkpoint"
    write_checkpoint(folder, SHAPES.get(name) or SIZES[name])
    if name in SHAPES:
        (folder / "rism.json").write_text(json.dumps(_SETTINGS))
    return folder
