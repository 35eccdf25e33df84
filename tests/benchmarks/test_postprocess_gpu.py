"""The benchmark of post-processing on a GPU, on a device whose kernels are emulated."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import postprocess_gpu
from benchmarks.postprocess_gpu import Case, measure, report
from tests.runtime.engines.fake_tensorrt import HostDevice

SMALL = Case("small", (8, 8), 20, 3, (40, 30))


def test_three_ways_agree_and_every_launch_has_a_floor() -> None:
    for capture, launches in (("vectors", 6), ("matrices", 7)):
        device = HostDevice()
        result = measure(SMALL, capture, 2, device=device, runs=2, flush_bytes=4096)
        assert set(result["pixels_that_differ"].values()) == {0}
        assert [each["kernel"] for each in result["launches"]] == device.compiled[-1].launched[
            -launches:
        ]
        floors = {each["kernel"]: each["floor_s"] for each in result["launches"]}
        read = floors["sums_by_region"] * result["copy_bytes_per_s"]
        assert read == pytest.approx(2 * 4 * 64 * 20)
        assert (result["kernels"]["runs"], result["host"]["runs"]) == (2, 1)
        table = report("small", result).splitlines()
        assert len(table) == 1 + 3 + launches and "0 pixels differ" in table[1]


def test_a_case_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, real = tmp_path / "found.json", postprocess_gpu.measure

    def one_fails(case: Case, capture: str, count: int, **given: Any) -> dict[str, Any]:
        if count == 8:
            raise RuntimeError("an illegal\naddress")
        return real(case, capture, count, **given)

    monkeypatch.setattr(postprocess_gpu, "measure", one_fails)
    monkeypatch.setattr(postprocess_gpu, "open_device", lambda _: HostDevice())
    monkeypatch.setattr(postprocess_gpu, "environment", lambda **_: {})
    monkeypatch.setattr(postprocess_gpu, "CASES", (SMALL,))
    monkeypatch.setattr(postprocess_gpu, "FLUSH_BYTES", 4096)
    monkeypatch.setattr(sys, "argv", ["postprocess_gpu", "--runs", "1", "--json", str(file)])
    with pytest.raises(SystemExit, match="1"):
        postprocess_gpu.main()
    found = json.loads(file.read_text())
    assert "median_s" in found["small, vectors, 1 expression"]["kernels"]
    assert found["small, vectors, 8 expressions"] == {"not_run": "RuntimeError: an illegal address"}
    assert "median_s" in found["small, matrices, 1 expression"]["kernels"]
    assert "not run: RuntimeError: an illegal address" in capsys.readouterr().out
