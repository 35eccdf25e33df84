"""The benchmark of precision: which rows its file keeps, what it refuses, a prompt with a mask."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from benchmarks import precision
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from tests.export.families.step1x.small_model import make_step1x


def test_rows_of_other_sizes_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "precision.json"
    kept = {"bf16": {"features": 0.5}}
    old = {"environment": {}, "4b, 1 + 2 blocks": kept, "step1x-1.0, 1 + 2 blocks": kept}
    file.write_text(json.dumps(old))
    monkeypatch.setattr(precision, "measure", lambda _: {"bf16": {"features": 0.25}})
    monkeypatch.setattr(sys, "argv", ["p", "--sizes", "step1x-1.0", "--json", str(file)])
    precision.main()
    found = json.loads(file.read_text())
    assert found["4b, 1 + 2 blocks"] == kept
    assert found["step1x-1.0, 1 + 2 blocks"] == {"bf16": {"features": 0.25}}
    assert found["environment"]["packages"]


def test_a_size_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["p", "--sizes", "4b,5b"])
    with pytest.raises(SystemExit):
        precision.main()
    assert "size '5b' is not known, expected some of 4b,9b,step1x-1.0" in capsys.readouterr().err


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
