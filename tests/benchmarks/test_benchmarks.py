"""The baselines are honest: they give what the runtime gives, only slower."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.baselines.literal_mask import literal_mask
from benchmarks.harness.checks import same_masks, same_outputs, same_values
from benchmarks.harness.errors import DiffersError
from benchmarks.harness.measure import by_turns, with_host_peak
from rism.runtime.image.geometry import Plan
from rism.runtime.method.equations import segment_tokens
from rism.runtime.method.upsampling import upsample


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
    assert 0.05 < theirs.mean() < 0.95


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
def test_memory_is_what_was_taken_meanwhile() -> None:
    before = np.ones(3_000_000)  # held before, and not counted
    _, taken = with_host_peak(lambda: np.ones(6_000_000).sum())
    assert taken is not None and 47e6 < taken < 70e6
    total, taken = with_host_peak(before.sum)
    assert total == 3_000_000 and taken is not None and taken < 10e6


# A warm-up each, then turns of one untimed run and a share of the four; or one run a turn.
@pytest.mark.parametrize(
    ("settle", "order"), [(True, "ab" + "aabb" * 2 + "aaabbb"), (False, "ab" + "ab" * 4)]
)
def test_ways_take_turns(settle: bool, order: str) -> None:
    called: list[str] = []
    ways = {name: lambda name=name: called.append(name) for name in "ab"}
    timings = by_turns(ways, runs=4, warm_up=1, settle=settle)
    assert [len(each.seconds) for each in timings.values()] == [4, 4]
    assert "".join(called) == order


def test_what_differs_is_not_timed() -> None:
    rng = np.random.default_rng(0)
    outputs = {
        "attention_vectors": rng.random((1, 3, 64), dtype=np.float32),
        "propagated_vectors": rng.random((1, 3, 64), dtype=np.float32),
        "features": rng.standard_normal((1, 64, 8), dtype=np.float32),
    }
    same_outputs("same", outputs, outputs, tolerance=0.0, mask_tolerance=0.0)
    other = outputs | {"features": outputs["features"][:, ::-1].copy()}
    with pytest.raises(DiffersError, match="'other: features' differs from the baseline by"):
        same_outputs("other", other, outputs, tolerance=1e-3, mask_tolerance=0.0)
    with pytest.raises(DiffersError, match=r"mask of 'other' differs .* its time means nothing"):
        same_outputs("other", other, outputs, tolerance=10.0, mask_tolerance=0.01)
    # What captures nothing has features to compare, and no mask.
    same_outputs("no capture", {"features": outputs["features"]}, outputs, tolerance=0.0,
                 mask_tolerance=0.0)  # fmt: skip
    with pytest.raises(DiffersError, match="inf"):
        same_values("broken", np.array([np.nan]), np.array([1.0]), 1.0)
    with pytest.raises(DiffersError, match=r"100\.00% of its pixels"):
        same_masks("cut", np.ones((2, 2), bool), np.ones((2, 3), bool), 0.1)
