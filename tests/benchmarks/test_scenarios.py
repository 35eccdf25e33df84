"""Every scenario of the quick file, at sizes that take a moment: rows, ratios, failures."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")


from benchmarks.__main__ import QUICK, main
from benchmarks.capture import models
from benchmarks.config import Limit, Scenario, read_config
from benchmarks.harness.rows import Row, Task, of_value
from benchmarks.run import run_here, run_scenario
from benchmarks.scenarios import KINDS, dit, quality
from benchmarks.summary import failures, summary, table
from rism.runtime.errors import ProviderError

pytestmark = pytest.mark.usefixtures("one_thread")
SCENARIOS = {each.name: each for each in read_config(QUICK)}
# What makes each small. Those that are not here start processes of seconds: see below.
SMALL: dict[str, dict[str, Any]] = {
    "post-processing": {"grids": ["8x6"], "features": 24, "blocks": [2], "size": "64x48"},
    "post-processing-tokens": {"grids": ["8x8", "8x16"], "features": 16, "size": "40x30"},
    "post-processing-blocks": {"grids": ["8x8"], "features": 16, "size": "40x30"},
    "contour": {"grids": ["8x6"], "size": "160x120"},
    "contour-noise": {"grids": ["8x6"], "percents": [0, 60], "size": "160x120", "images": 2},
    # The other engines: test_capture.py.
    "dit-capture": {
        "cases": ["blocks-1@64"],
        "engines": ["torch", "plain onnxruntime"],
        "variants": ["paper", "vectors"],
    },
    "dit-size": {"cases": ["blocks-1@64", "blocks-1@96x64"]},
    "dit-tokens": {"cases": ["blocks-1@64"]},
    "dit-blocks": {"cases": ["blocks-1@64", "blocks-4@64"]},
    "probe": {},
    "image": {},
    "expressions": {"counts": [2]},
}
# Each of them is a process that imports PyTorch, or several: measured by the command, and by
# tests of what they call.
PROCESSES = {"cold-start", "import-time", "export", "folder", "providers", "stages"}


def small(name: str) -> Scenario:
    scenario = SCENARIOS[name]
    parameters = dict(scenario.parameters) | SMALL[name]
    return replace(scenario, runs=1, warm_up=0, parameters=parameters)


def check_schema(found: dict[str, Any]) -> None:
    """What a reader of the files counts on."""
    assert set(found) - {"gpu"} == {
        "kind", "what", "baseline", "runs", "warm_up", "parameters", "seconds", "versions",
        "rows", "targets",
    }  # fmt: skip
    assert found["versions"]["numpy"] and found["versions"]["onnxruntime"]
    for row in found["rows"]:
        if "reason" in row:
            assert set(row) == {"row", "group", "reason", "failed"}
            continue
        assert set(row) == {
            "row", "group", "unit", "median", "min", "max", "runs", "baseline", "ratio", "also",
            "host_bytes", "device_bytes", "notes",
        }  # fmt: skip
        assert row["unit"] in ("s", "bytes", "") and row["min"] <= row["median"] <= row["max"]
        assert row["baseline"] == found["baseline"]
    json.dumps(found, allow_nan=False)


def test_every_scenario_is_tried() -> None:
    assert set(SMALL) | PROCESSES == {each.name for each in SCENARIOS.values() if not each.slow}


@pytest.mark.parametrize("name", SMALL)
def test_figures_stand_beside_their_baseline(name: str) -> None:
    found = run_here(small(name))
    check_schema(found)
    assert not any("reason" in row for row in found["rows"]), found["rows"]
    groups = {row["group"] for row in found["rows"]}
    for group in groups:
        rows = {row["row"]: row for row in found["rows"] if row["group"] == group}
        baseline = rows[found["baseline"]]
        assert baseline["ratio"] == 1.0 and len(rows) > 1
        for row in rows.values():
            assert row["median"] > 0 and row["ratio"] == row["median"] / baseline["median"]
            for other, ratio in row["also"].items():
                assert ratio == row["median"] / rows[other]["median"]
    assert table(name, found).splitlines()[0].startswith(f"{name}: ")


def test_a_failure_is_a_row_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = tmp_path / "some.toml", tmp_path / "figures.json"
    config.write_text(
        """
runs = 1
warm_up = 0
time_limit_s = 60
[scenarios.good]
kind = "contour"
baseline = "bilinear"
parameters = { grids = ["8x6"], size = "160x120" }
targets = [{ row = "guided", at_most_s = 1e-9 }]
[scenarios.nameless]
kind = "contour"
baseline = "nothing of this name"
parameters = { grids = ["8x6"], size = "160x120" }
[scenarios.bad]
kind = "contour"
baseline = "bilinear"
parameters = { size = "magic" }
"""
    )
    assert main(["run", "--config", str(config), "--json", str(file)]) == 1
    out, err = capsys.readouterr()
    results = json.loads(file.read_text())
    assert results["schema"] == 1 and results["environment"]["packages"]["numpy"]
    assert list(results["scenarios"]) == ["good", "nameless", "bad"]
    for found in results["scenarios"].values():
        check_schema(found)
    [bad] = results["scenarios"]["bad"]["rows"][:1]
    assert bad["failed"] and bad["reason"].startswith("size 'magic' is not two numbers of ")
    assert "FAILED: size 'magic' is not" in out
    assert "guided at most 0.001 us, is" in out and out.count(": missed") == 1
    assert "failed: bad: bad: size 'magic'" in err
    assert "no row of this name was measured, there are: bilinear, guided" in err


def test_rows_of_a_process_that_was_ended_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small transformer is measured at once, the other for minutes: its limit comes first."""
    cases, variants = ["blocks-1@64", "blocks-57@1024"], ["no capture", "vectors"]
    own = {"cases": cases, "variants": variants, "reference": "shares"}
    scenario = small("dit-size")
    scenario = replace(
        scenario,
        baseline="torch: no capture",
        time_limit_s=600,
        parameters={**scenario.parameters, **own},
    )
    seen: list[dict[str, Any]] = []
    clock = time.monotonic

    def now() -> float:
        """Ten minutes are over when two rows have figures, however busy this machine is."""
        known = [row for row in seen[-1]["rows"] if "reason" not in row] if seen else []
        return clock() + (600 if len(known) == 2 else 0)

    monkeypatch.setattr(time, "monotonic", now)
    found = run_scenario(scenario, seen.append)
    first = found["rows"][:2]
    check_schema(found)
    assert [(row["group"], row["row"]) for row in found["rows"]] == [
        (case, f"torch: {variant}") for case in cases for variant in variants
    ]
    assert first[1]["ratio"] == first[1]["median"] / first[0]["median"]
    assert [row["reason"] for row in found["rows"][2:]] == ["was not done after 600 s"] * 2
    assert len(failures({"scenarios": {"one": found}})) == 2
    assert found["versions"]["diffusers"] != "not installed"
    # Whoever watched had them while the other was still measured.
    assert seen[-1]["rows"][:2] == first
    assert seen[-1]["rows"][2]["reason"] == "not reached"


def test_a_provider_is_asked_for_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(provider: str) -> None:
        raise ProviderError(f"provider {provider} is not in this onnxruntime")

    monkeypatch.setattr(dit, "check_provider", refuse)
    monkeypatch.delattr(dit, "RandomModel")
    engines = ["plain onnxruntime", "onnxruntime"]
    parameters = small("dit-capture").parameters | {"engines": engines, "variants": ["vectors"]}
    rows = run_here(replace(small("dit-capture"), parameters=parameters))["rows"]
    assert [row["row"] for row in rows] == [f"{engine}: vectors" for engine in engines]
    assert {(row["reason"], row["failed"]) for row in rows} == {
        ("provider cpu is not in this onnxruntime", False)
    }


def test_a_case_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dit.RandomModel

    def made(case: models.CaptureCase, *rest: Any) -> models.RandomModel:
        if str(case) == "blocks-1@64":
            raise RuntimeError("an error of the device")
        return real(case, *rest)

    monkeypatch.setattr(dit, "RandomModel", made)
    rows = run_here(small("dit-blocks"))["rows"]
    assert {row["group"] for row in rows if "reason" not in row} == {"blocks-4@64"}
    reasons = [row["reason"] for row in rows if row["group"] == "blocks-1@64"]
    assert reasons == ["RuntimeError: an error of the device"] * 3


def test_medians_targets_and_what_is_not_here() -> None:
    scenario = replace(
        SCENARIOS["probe"],
        baseline="base",
        also=("floor",),
        targets=(
            Limit("fast", ratio_at_most=0.5, at_most_s=1.0),
            Limit("fast", against="floor", ratio_at_most=1.1),
            Limit("fast", over_weights_at_most=1e9),
            Limit("gone", at_most_s=1.0),
        ),
    )
    rows = [
        Row("base", values=(4.0, 5.0, 9.0)),
        Row("floor", values=(2.0,)),
        Row("fast", values=(2.5, 2.4, 2.6), device_bytes=3 * 10**9, notes={"weights_bytes": 10**9}),
        Row("gone", reason="no such provider"),
    ]
    found = summary(scenario, rows, {"numpy": "2", "onnxruntime": "1"}, seconds=1.0)
    check_schema(found)
    fast = found["rows"][2]
    assert (fast["median"], fast["ratio"], fast["also"]) == (2.5, 0.5, {"floor": 1.25})
    assert [target["met"] for target in found["targets"]] == [False, True, False, False, None]
    assert failures({"scenarios": {"one": found}}) == []
    lines = table("one", found).splitlines()
    for said in ("2.5 s", "x 0.500", "device 3 GB", "x 1.250 floor"):
        assert said in lines[3]
    assert lines[4].endswith("not here: no such provider")
    assert lines[-1] == "  target: gone at most 1 s, is -: not measured"
    small_one = summary(scenario, [of_value("base", 2000)], {"numpy": "2"}, seconds=1.0)
    assert "2 kB" in table("one", small_one)


def test_the_parts_of_the_method_are_compared_on_the_same_scenes() -> None:
    parameters = {**KINDS["quality"].parameters, "kinds": ["plain"], "count": 2}
    rows = list(quality.measure(Task("quality", 1, 0, parameters)))
    assert [row.name for row in rows] == list(quality.PARTS)
    published, *_, ours = rows
    assert published.notes["difference"] == published.notes["margin"] == 0
    assert ours.notes["difference"] == pytest.approx(ours.values[0] - published.values[0], abs=1e-4)
