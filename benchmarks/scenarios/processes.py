"""Processes from their start to their end: from nothing to a mask, and imports alone."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.checks import same_masks
from benchmarks.harness.child_process import peak_of, run_python
from benchmarks.harness.measure import by_turns
from benchmarks.harness.rows import EXAMPLE, Row, Task, timed

PIPELINE, OURS = "literal, PyTorch", "rism run"
_TOLERANCE = 5e-3
# As the examples of diffusers for these models import it.
_FLUX2 = "diffusers.pipelines.flux2.pipeline_flux2_klein"
_EXPRESSION = "the green van"


def measure_cold_start(task: Task) -> list[Row]:
    """Measure `rism run` with the built-in model against PyTorch doing the same."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "mask.npy", Path(folder) / "mask.png"
        pipeline = ("-m", "benchmarks.baselines.pytorch_pipeline")
        run = ("-m", "rism", "run", str(EXAMPLE), _EXPRESSION, "-o", str(ours), "--paper")
        commands: dict[str, tuple[str, ...]] = {
            PIPELINE: (*pipeline, str(EXAMPLE), _EXPRESSION, str(theirs)),
            OURS: (*run, "-q", "--provider", "cpu"),
        }
        peaks = {name: peak_of(command) for name, command in commands.items()}
        found = np.asarray(Image.open(ours).convert("L")) > 0
        share = same_masks(OURS, found, np.load(theirs), _TOLERANCE)
        return _timed(task, commands, peaks, pixels_that_differ=share)


def measure_import(task: Task) -> list[Row]:
    """Measure imports, and `rism --help`."""
    commands: dict[str, tuple[str, ...]] = {
        "torch and diffusers": ("-c", f"from {_FLUX2} import Flux2KleinPipeline"),
        "import rism": ("-c", "import rism"),
        "import rism.runtime": ("-c", "import rism.runtime"),
        "rism --help": ("-m", "rism", "--help"),
        "python -c pass": ("-c", "pass"),
    }
    return _timed(task, commands, {name: peak_of(command) for name, command in commands.items()})


def _timed(
    task: Task, commands: Mapping[str, tuple[str, ...]], peaks: Mapping[str, int], **notes: Any
) -> list[Row]:
    ways = {name: partial(run_python, command) for name, command in commands.items()}
    timings = by_turns(ways, runs=task.runs, warm_up=task.warm_up, settle=False)
    return [
        timed(name, timing, host_bytes=peaks[name], **notes) for name, timing in timings.items()
    ]
