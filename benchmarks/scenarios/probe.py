"""One block's probe in every way, against float64, beside the attention that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.capture.block import compare_ways
from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.measure import repeat, repeat_on_gpu
from benchmarks.harness.rows import Row, Task, check_known, failed, timed
from benchmarks.rooflines.gpus import known_gpu
from benchmarks.rooflines.probe_bounds import SHAPES
from rism.runtime.errors import one_line

# Largest errors of a and T a over their largest value, against float64.
_LIMITS = {"cpu": 1e-5, "cuda": 2e-2}


def measure(task: Task) -> Iterator[Row]:
    """Measure every way; those that are off, or fail, are failed rows."""
    [case] = check_known("case", [task["case"]], (*SHAPES, "small"))
    [device] = check_known("device", [task["device"]], _LIMITS)
    cuda = device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ScenarioError("PyTorch finds no CUDA device, expected an NVIDIA GPU")
    gpu = known_gpu(torch.cuda.get_device_name()) if cuda else None
    clock = partial(repeat_on_gpu if cuda else repeat, runs=task.runs, warm_up=task.warm_up)
    with torch.no_grad():
        for way, timing, facts in compare_ways(case, device, clock, gpu):
            error = max(facts.get("error_a", 0), facts.get("error_ta", 0))
            if timing is None:
                yield failed(way, one_line(facts["failed"]))
            elif error > _LIMITS[device]:
                yield failed(way, f"differs from float64 by {error:.1e}")
            else:
                yield timed(way, timing, **facts)
