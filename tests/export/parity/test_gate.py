"""What rounding may do to a mask before an export is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from rism.export.parity import gate
from rism.export.precision import PRECISIONS


def masks(limits: Any, *, step: float, turned: int) -> dict[str, gate.Check]:
    """Checks of 16 tokens, one of which is `step` past tau, and `turned` have other features."""
    rng, checks = np.random.default_rng(0), dict[str, gate.Check]()
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    ramp[12] = 0.8 - 1e-5
    features = rng.standard_normal((1, 16, 8), dtype=np.float32)
    wanted = {
        "attention_vectors": ramp[None, None],
        "propagated_vectors": ramp[None, None],
        "features": features,
    }
    got = {name: value.copy() for name, value in wanted.items()}
    got["propagated_vectors"][0, 0, 12] += step
    got["features"][0, :turned] *= -1
    spec: Any = SimpleNamespace(spec=SimpleNamespace(tau=0.8))
    sample: Any = SimpleNamespace(size_wh=(32, 32), grid_hw=(4, 4))
    own = gate.Gate(spec, Path(), PRECISIONS["fp16"], PRECISIONS["fp16"])
    own._masks(checks, "", sample, got, wanted, limits)
    return checks


def test_a_token_that_rounding_brings_across_tau() -> None:
    found = masks(gate._ROUNDED, step=1e-3, turned=0)
    assert found["region"].error == 1 / 16 and found["region"].passed
    assert found["mask"].error == 0.0
    # Without rounding nothing may move, and all of the mask is compared.
    exact = masks(gate._EXACT, step=1e-3, turned=0)
    assert "region" not in exact and not exact["mask"].passed


def test_features_that_differ_are_found_all_the_same() -> None:
    assert not masks(gate._ROUNDED, step=0.0, turned=8)["mask"].passed
