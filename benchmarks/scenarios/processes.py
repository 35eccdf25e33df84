"""Whole processes: from nothing to a mask, and imports alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.checks import same_masks
from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.measure import by_turns
from benchmarks.harness.rows import EXAMPLE, Job, Row, timed
from rism.runtime.errors import one_line

__all__ = ["measure_cold_start", "measure_import", "peak_of", "run_python"]

ROOT = Path(__file__).parents[2]
PYTHON, TORCH = "python -c pass", "torch and diffusers"
PIPELINE, OURS = "literal, PyTorch", "rism run"
_TOLERANCE = 5e-3
# Of a process that has ended, its high-water mark: the kernel tells its parent.
_WATCH = (
    "import resource, subprocess, sys; "
    "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)"
)


def measure_cold_start(job: Job) -> list[Row]:
    """Measure `rism run` with the built-in model against PyTorch doing the same."""
    expression = job.get("expression", str)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "mask.npy", Path(folder) / "mask.png"
        pipeline = ("-m", "benchmarks.baselines.pytorch_pipeline")
        commands: dict[str, tuple[str, ...]] = {
            PIPELINE: (*pipeline, str(EXAMPLE), expression, str(theirs)),
            OURS: (
                *("-m", "rism", "run", str(EXAMPLE), expression, "-o", str(ours), "--paper"),
                *("-q", "--provider", "cpu"),
            ),
        }
        peaks = {name: peak_of(command) for name, command in commands.items()}
        found = np.asarray(Image.open(ours).convert("L")) > 0
        share = same_masks(OURS, found, np.load(theirs), _TOLERANCE)
        return _timed(job, commands, peaks, pixels_that_differ=share)


def measure_import(job: Job) -> list[Row]:
    """Measure imports, and what the command line says without a model."""
    commands: dict[str, tuple[str, ...]] = {
        TORCH: ("-c", "import benchmarks.baselines.torch_import"),
        "import rism": ("-c", "import rism"),
        "import rism.runtime": ("-c", "import rism.runtime"),
        "rism --help": ("-m", "rism", "--help"),
        PYTHON: ("-c", "pass"),
    }
    peaks = {name: peak_of(command) for name, command in commands.items()}
    return _timed(job, commands, peaks)


def _timed(
    job: Job,
    commands: Mapping[str, tuple[str, ...]],
    peaks: Mapping[str, int],
    **notes: Any,
) -> list[Row]:
    ways: dict[str, Callable[[], object]] = {
        name: partial(run_python, command) for name, command in commands.items()
    }
    timings = by_turns(ways, runs=job.runs, warm_up=job.warm_up, settle=False)
    return [
        timed(name, timing, host_bytes=peaks[name], **notes) for name, timing in timings.items()
    ]


def run_python(command: tuple[str, ...]) -> str:
    """Run a Python process to its end, and return what it said."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ScenarioError(
            f"python {one_line(' '.join(command), limit=60)} ended with {done.returncode}: "
            f"{one_line(last[0])}"
        )
    return done.stdout


def peak_of(command: tuple[str, ...]) -> int:
    """Memory of a process at most, resident, bytes."""
    said = run_python(("-c", _WATCH, sys.executable, *command))
    return int(said.split()[-1])
