"""Errors of 16 bits, on a small Step1X-Edit whose prompt has a mask."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from benchmarks.scenarios import precision
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from tests.export.families.step1x.small_model import make_step1x


def test_step1x_is_rounded_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "_REAL_TOKENS", 17)
    path = make_step1x(tmp_path / "model", "1.0")
    model = open_model(find_checkpoint(str(path)))
    wanted = precision.run_transformer(model, "fp32")
    errors = {
        name: precision.compare(precision.run_transformer(model, name), wanted)
        for name in ("bf16", "fp16")
    }
    assert set(wanted) == {"attention_vectors", "propagated_vectors", "features"}
    assert all(np.isfinite(value).all() for value in wanted.values())
    assert 0 < errors["fp16"]["features"] < errors["bf16"]["features"] < 0.05
    assert 0 < errors["bf16"]["attention_vectors"] < 0.01
