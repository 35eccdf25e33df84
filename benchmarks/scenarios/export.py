"""A whole export in a process of its own: time and memory, against loading and saving in PyTorch.

The full sizes are `python -m benchmarks.full_size`'s; here a checkpoint is made on the spot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.errors import ConfigError
from benchmarks.measure import by_turns
from benchmarks.random_checkpoint import SIZES, Shape, write_checkpoint
from benchmarks.rows import Job, Row, of_size, timed
from benchmarks.scenarios.processes import peak_of, run_python
from rism.export.checkpoint import find_checkpoint

__all__ = ["measure"]

BASELINE, OURS = "load and save, PyTorch", "rism export"
# A vocabulary of the tokenizer that is written with it, and half a gigabyte of blocks.
SHAPES = {
    "small": Shape(2, 6, 12, 64, 384, 1152, text_blocks=12, text_heads=6, text_kv_heads=2,
                   text_head_dim=64, vocabulary=8192, tied=True),
    "large": Shape(2, 6, 24, 128, 2560, 9728, text_blocks=28, vocabulary=8192, tied=True),
}  # fmt: skip


def measure(job: Job) -> list[Row]:
    """Measure both, each in processes of their own; memory is a group of its own."""
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
        peaks = {each: peak_of(command()) for each, command in commands.items()}
        ways = {each: partial(_to_its_end, command) for each, command in commands.items()}
        timings = by_turns(ways, runs=job.runs, warm_up=job.warm_up, settle=False)
    rows = [
        timed(each, timing, group="time", host_bytes=peaks[each], checkpoint_bytes=nbytes)
        for each, timing in timings.items()
    ]
    return rows + [of_size(each, peak, group="peak memory") for each, peak in peaks.items()]


def _to_its_end(command: Callable[[], tuple[str, ...]]) -> str:
    return run_python(command())


def _checkpoint(name: str, scratch: Path) -> Path:
    if name == "mini":
        return find_checkpoint("mini").folder
    if name not in SHAPES and name not in SIZES:
        known = ", ".join(("mini", *SHAPES, *SIZES))
        raise ConfigError(f"shape '{name}' is not known, expected one of {known}")
    folder = scratch / "checkpoint"
    write_checkpoint(folder, SHAPES.get(name) or SIZES[name])
    return folder
