"""A rehearsal of the minutes on a GPU: every step on a CPU, and the pages that are made of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_results, gpu_run
from benchmarks.gpu_steps import GpuRun
from tests.paths import ROOT


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal")
    command = [sys.executable, "benchmarks/gpu_run.py", "--device", "cpu", "--small"]
    # Threads of products this small wait for each other.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, env=alone, check=True, timeout=900)
    return out


def test_every_step_has_figures(rehearsal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step1x, klein = gpu_run.SMALL_CASES
    steps = gpu_results.merge([rehearsal])["steps"]
    for case in gpu_run.SMALL_CASES:
        ways = steps[f"probe {case}"]["ways"]
        assert {"main attention", "fused", "fused blind", "shares", "vectors"} < ways.keys()
        probed = [row for row in ways.values() if "repeats" in row]
        assert len(probed) == 5
        assert all(row["repeats"] and row["error_ta"] < 1e-5 for row in probed)
        for name in gpu_run.VARIANTS:
            row = steps[f"eager {case}"][name]
            assert row["median_s"] > 0
            assert max(row.get("largest_difference", [0])) < 1e-4
        assert steps[f"eager {case}"]["fused"]["kernels_s"]
    assert steps[f"eager {step1x}"]["paper"]["runs"] == 2
    assert steps[f"eager {klein}, paper"]["paper"]["runs"] == 2
    assert all(steps[f"compiled {klein}"][name]["compile_s"] > 0 for name in gpu_run.COMPILED)
    assert [each["exit_code"] for each in steps["children"].values()] == [0]
    tests = steps["tests"]
    assert tests["exit_code"] == 0 and "tests/runtime/test_gpu.py" in tests["said"]
    assert gpu_results.main([str(rehearsal)]) == 1
    assert "this is a rehearsal" in capsys.readouterr().out


def test_a_step_that_fails_is_a_row_and_the_next_is_taken(tmp_path: Path) -> None:
    run = GpuRun(tmp_path, "cpu", 60, small=True)

    def half_done() -> object:
        run.save("first", {"figure": 1})
        raise RuntimeError("out of something")

    run.attempt("first", half_done)
    run.attempt("second", lambda: {"figure": 2})
    run.budget = 0
    run.attempt("third", lambda: {"figure": 3})
    steps = json.loads((tmp_path / "found.json").read_text())["steps"]
    first = steps["first"]["found"]
    assert (first["figure"], first["failed"]) == (1, "RuntimeError: out of something")
    assert steps["second"]["found"] == {"figure": 2}
    assert steps["third"]["found"] == {"failed": "no time was left for it"}


def test_figures_stand_beside_floors_and_the_papers(rehearsal: Path, tmp_path: Path) -> None:
    """As if the small models had been the published ones, on an H200."""
    folder = tmp_path / "run"
    shutil.copytree(rehearsal, folder)
    for file in folder.glob("*.json"):
        text = file.read_text()
        for small, full in zip(gpu_run.SMALL_CASES, gpu_run.CASES, strict=True):
            text = text.replace(small, full)
        file.write_text(text)
    result = gpu_results.merge([folder])
    steps = result["steps"]
    steps["environment"]["gpu"] = {"name": "NVIDIA H200"}
    case = gpu_run.CASES[0]
    steps[f"eager {case}"]["fused"] |= {"median_s": 0.08, "peak_over_weights_bytes": 2e9}
    steps[f"eager {case}"]["paper"]["median_s"] = 0.2
    steps["post-processing"] = {"failed": "ProviderError: no CuPy"}
    steps["children"] = {"compiled": {"exit_code": -9, "said": "...\nkilled"}}
    verdicts = {each.what: each for each in gpu_results.bars(result)}
    name = gpu_results.NAMES[case]
    literal = verdicts[f"{name}: literal method over ours"]
    assert (literal.value, literal.verdict) == (pytest.approx(2.5), "**missed**")
    assert verdicts[f"{name}: peak over weights"].verdict == "**missed**"
    assert verdicts[f"{name}: one pass"].verdict == "met"
    page = gpu_results.page([result])
    row = next(line for line in page.splitlines() if line.startswith("| fused | 80 |"))
    assert row.split(" | ")[-2:] == ["40.8", "2 |"], row  # the floor of docs/performance.md
    for said in ("603.78 ms", "1493.02 ms", "- post-processing: ProviderError: no CuPy", "killed"):
        assert said in page
    assert "Step1X-Edit 1.0 at 512 takes 80 ms (the paper, A100: 603.78)" in (
        gpu_results.readme_line([result])
    )


def test_the_pages_show_what_is_committed() -> None:
    results = gpu_results.read_results(gpu_results.RESULTS)
    for file, text in (
        ("docs/performance.md", gpu_results.page(results)),
        ("README.md", gpu_results.readme_line(results)),
    ):
        page = (ROOT / file).read_text()
        assert gpu_results.fill(page, text) == page, "run python -m benchmarks.gpu_results"
