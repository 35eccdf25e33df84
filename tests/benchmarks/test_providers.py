"""The scenario of providers: what runs here, what does not and why."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import QUICK
from benchmarks.config import read_config
from benchmarks.harness.rows import Row, Task
from benchmarks.run import run_here
from benchmarks.scenarios import providers
from benchmarks.scenarios.providers import Way, find_ways, run_way
from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.bundle.update import update_bundle
from rism.runtime.engines.providers import PROVIDERS

TASK = Task("providers", runs=1, warm_up=0, parameters={"expressions": 2})
CPU = Way("onnxruntime-cpu", "fp32")


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_bundle(), tmp_path / "mini"))


def test_everything_on_this_machine() -> None:
    [scenario] = [each for each in read_config(QUICK) if each.name == "providers"]
    found = run_here(replace(scenario, runs=1, warm_up=0))
    rows = {row["row"].partition(",")[0].partition("+")[0]: row for row in found["rows"]}
    assert set(rows) == set(PROVIDERS)
    cpu = rows.pop("onnxruntime-cpu")
    own = cpu["notes"]
    assert own["self_test"] == "passed" and len(own["comparisons"]) > 10
    assert 0 < cpu["median"] < own["together"]["median_s"] * 10
    assert own["stages_ms"]["transformer"] > 0 and own["tokens"] > 100
    assert cpu["host_bytes"] > 50_000_000 and cpu["device_bytes"] is None
    for row in rows.values():
        if "reason" in row:
            assert len(row["reason"]) > 20 and not row["failed"]
    assert not (resolve_bundle() / "selftest.bin").exists()


def test_an_engine_without_its_machine(mini: Path) -> None:
    plan = mini.parent / "some.plan"
    plan.write_bytes(b"a plan")
    rows = {"min": [1, 48], "opt": [1, 48], "max": [8, 48]}
    file = "engines/rtx-fp16/text_encoder.plan"
    graph = {"file": file, "shapes": {"input_ids": rows, "attention_mask": rows}}
    engine = {
        "name": "rtx-fp16", "target": "tensorrt-rtx", "version": "1.7.1.116",
        "platform": "linux-x86_64", "compute_capabilities": ["8.9"], "precision": "fp16",
        "stripped": False, "graphs": {"text_encoder": graph},
    }  # fmt: skip
    update_bundle(mini, lambda manifest: manifest.update(engines=[engine]), files={file: plan})
    listed = find_ways(mini, build=True)
    [way] = [way for way in listed if way.provider.startswith("tensorrt-rtx")]
    assert (way.engine, way.name) == ("rtx-fp16", "rtx-fp16, fp16")
    # On a machine with a GPU, a plan of six bytes has a reason, too.
    assert way.reason or run_way(TASK, mini, way).reason


def test_what_a_process_of_its_own_says(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [weights] = mini.glob("vae_encoder.weights")
    weights.write_bytes(weights.read_bytes()[:-1])
    row = run_way(TASK, mini, CPU)
    assert row.failed and row.reason is not None and "'vae_encoder.weights' is" in row.reason
    monkeypatch.setattr(providers, "_TIMEOUT_S", 0.01)
    assert run_way(TASK, mini, CPU).reason == "was not done after 0.01 s"


def test_a_crash_is_a_reason(mini: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'it fell over' >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    assert run_way(TASK, mini, CPU).reason == "exit code -11: it fell over"


def test_a_failed_self_test_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts: list[tuple[str, list[Any]]] = [("failed", []), ("has no vectors", [])]
    monkeypatch.setattr(providers, "_timed", lambda _: Row("cpu", values=(1.0,)))
    monkeypatch.setattr(providers, "_self_test", lambda _: verdicts.pop(0))
    [row] = providers.measure_one(TASK)
    assert row.failed and row.reason == "the self-test failed: its time means nothing"
    [row] = providers.measure_one(TASK)
    assert row.values == (1.0,) and row.notes["self_test"] == "has no vectors"
