"""The baselines are honest: they give what the runtime gives, only slower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.literal import literal_mask
from benchmarks.measure import peak_bytes, repeat
from rism.runtime.geometry import Plan, upsample
from rism.runtime.method import segment_tokens

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(4))
def test_the_literal_form_finds_the_same_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid_hw, size_wh = (9, 12), (97, 61)
    propagated = rng.random((5, 108), dtype=np.float32)
    features = rng.standard_normal((108, 24), dtype=np.float32)
    found = segment_tokens(propagated, propagated, features, tau=0.7)
    ours = upsample(found.scores.reshape(grid_hw), Plan(size_wh, (96, 72), (0, 0, 96, 72), grid_hw))
    theirs = literal_mask(propagated, features, grid_hw=grid_hw, size_hw=size_wh[::-1], tau=0.7)
    assert ((ours > 0) != theirs).mean() < 1e-3


def test_what_is_measured() -> None:
    timing = repeat(lambda: None, runs=5)
    assert len(timing.seconds) == 5
    assert timing.spread[0] <= timing.median <= timing.spread[1]
    assert peak_bytes(lambda: np.ones(1_000_000)) >= 8_000_000


def test_an_unknown_scenario_is_wrong_usage() -> None:
    command = [sys.executable, "-m", "benchmarks", "nothing"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "expected some of: startup, postprocess" in run.stderr
