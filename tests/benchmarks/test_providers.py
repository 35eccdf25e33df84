"""The benchmark of providers: what runs here, what does not and why, and what is compared."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import providers
from benchmarks.provider_run import Job, Measured, _device_memory
from benchmarks.providers import Row, as_json, find_rows, measure, report
from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.bundle.update import update_bundle
from rism.runtime.engines.providers import PROVIDERS

JOB = Job(picture=str(providers.PICTURE), runs=1, warm_up=0, expressions=2)


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_bundle(), tmp_path / "mini"))


def timed(seconds: float, **changes: Any) -> Measured:
    timing = {"median_s": seconds, "min_s": seconds, "max_s": seconds * 2, "runs": 3}
    given: dict[str, Any] = {
        "runs_on": "cpu", "precision": "float32", "tokens": 4, "expressions": 2, "load_s": 1.0,
        "first_s": 1.0, "one": timing, "together": timing, "stages_ms": {"vae": 1.0},
        "host_bytes": 10**9, "device_bytes": None, "self_test": "passed",
    } | changes  # fmt: skip
    return Measured(**given)


def test_everything_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "providers.json"
    command = ["p", "--runs", "1", "--warm-up", "0", "--expressions", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", [*command, "--no-build"])
    providers.main()
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "mini, float32"
    found = json.loads(file.read_text())
    assert found["environment"]["packages"]["onnxruntime"]
    assert found["settings"] == {"runs": 1, "warm_up": 0, "picture": "street.png"}
    rows = {row["provider"]: row for row in found["mini"]["rows"]}
    assert set(rows) == set(PROVIDERS)
    assert found["mini"]["no_vectors"] is None
    cpu = rows["onnxruntime-cpu"]
    assert cpu["status"] == "ran" and cpu["reason"] is None
    own = cpu["measured"]
    assert own["self_test"] == "passed" and len(own["comparisons"]) > 10
    assert own["one"]["runs"] == 1 and 0 < own["one"]["median_s"] < own["together"]["median_s"] * 10
    assert own["stages_ms"]["transformer"] > 0 and own["host_bytes"] > 50_000_000
    assert own["device_bytes"] is None and own["tokens"] > 100
    for row in rows.values():
        if row["status"] == "not run":
            assert row["measured"] is None and len(row["reason"]) > 20
            assert any(row["reason"] in line for line in table)
    assert not (resolve_bundle() / "selftest.bin").exists()


def test_an_engine_without_its_machine(mini: Path) -> None:
    plan = mini.parent / "some.plan"
    plan.write_bytes(b"a plan")
    rows = {"min": [1, 40], "opt": [1, 40], "max": [8, 40]}
    file = "engines/rtx-fp16/text_encoder.plan"
    graph = {"file": file, "shapes": {"input_ids": rows, "attention_mask": rows}}
    engine = {
        "name": "rtx-fp16", "target": "tensorrt-rtx", "version": "1.7.1.116",
        "platform": "linux-x86_64", "compute_capabilities": ["8.9"], "precision": "fp16",
        "stripped": False, "graphs": {"text_encoder": graph},
    }  # fmt: skip
    update_bundle(mini, lambda manifest: manifest.update(engines=[engine]), files={file: plan})
    listed = find_rows(mini, build=True)
    [row] = [row for row in listed if row.provider.startswith("tensorrt-rtx")]
    assert (row.engine, row.precision) == ("rtx-fp16", "fp16")
    if row.reason is None:  # a machine with a GPU: a plan of six bytes has a reason, too
        [row] = measure(mini, [row], JOB)
    assert row.reason


def test_what_a_process_of_its_own_says(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [weights] = mini.glob("vae_encoder.weights")
    weights.write_bytes(weights.read_bytes()[:-1])
    [row] = measure(mini, [Row("onnxruntime-cpu", "fp32")], JOB)
    assert row.measured is None
    assert row.reason is not None and "'vae_encoder.weights' is" in row.reason
    monkeypatch.setattr(providers, "_TIMEOUT_S", 0.01)
    [row] = measure(mini, [Row("onnxruntime-cpu", "fp32")], JOB)
    assert row.reason == "was not done after 0.01 s"


def test_a_crash_is_a_reason(mini: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'it fell over' >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    [row] = measure(mini, [Row("onnxruntime-cpu", "fp32")], JOB)
    assert row.reason == "exit code -11: it fell over"


def test_memory_of_a_gpu_is_what_its_driver_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$1" = --id=1 ] && echo 1234\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    on_gpu = replace(JOB, provider="tensorrt+onnxruntime-cuda", device=1)
    assert _device_memory(on_gpu) == 1234 * 2**20
    assert _device_memory(replace(on_gpu, device=0)) is None  # it says nothing
    assert _device_memory(replace(on_gpu, provider="onnxruntime-cpu")) is None
    smi.unlink()
    assert _device_memory(on_gpu) is None


def test_ratios_are_against_the_best_onnxruntime() -> None:
    rows = [
        Row("onnxruntime-cpu", "fp32", measured=timed(8.0)),
        Row("onnxruntime-cuda", "fp32", measured=timed(0.5, device_bytes=3 * 10**9)),
        Row("tensorrt", "bf16", "tensorrt-bf16", measured=timed(0.25)),
        Row("tensorrt-rtx", "fp32", reason="this GPU is not served"),
    ]
    ratios = [entry.get("ratio") for entry in as_json(rows)]
    assert ratios == [0.0625, 1.0, 2.0, None]
    table = report(rows).splitlines()
    assert "500.0 ms (500.0 to 1000.0), 2 together 250.0 each" in table[1]
    assert "memory 1.00 GB + 3.00 GB on the GPU, self-test passed, x1.00" in table[1]
    assert table[2].startswith("tensorrt-bf16") and table[2].endswith("x2.00")
    assert table[3].endswith("not run: this GPU is not served")
    assert table[4] == "ratios are against onnxruntime-cuda, of the whole of one expression"
    assert as_json(rows[2:])[0].get("ratio") is None


def test_a_failed_self_test_and_a_bad_bundle_end_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = [Row("onnxruntime-cpu", "fp32", measured=timed(1.0, self_test="failed"))]
    monkeypatch.setattr(providers, "measure", lambda *_: failed)
    monkeypatch.setattr(sys, "argv", ["p", "--no-build"])
    with pytest.raises(SystemExit) as ended:
        providers.main()
    assert ended.value.code == 1 and "self-test failed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["p", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as ended:
        providers.main()
    assert ended.value.code == 1 and "is not there" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["p", "--runs", "0"])
    with pytest.raises(SystemExit):
        providers.main()
    assert "--runs and --expressions must be 1 or more" in capsys.readouterr().err
