"""Scenarios in a file: what is refused, and in what words; both files that are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUICK, main
from benchmarks.config import Scenario, chosen, read_config
from benchmarks.harness.errors import ConfigError
from benchmarks.run import longest_s
from benchmarks.scenarios import KINDS

ROOT = Path(__file__).parents[2]
HEAD = "runs = 3\nwarm_up = 1\ntime_limit_s = 60\n"
SCENARIO = '[scenarios.one]\nkind = "postprocess"\nbaseline = "literal, PyTorch"\n'


def read(folder: Path, text: str) -> list[Scenario]:
    file = folder / "some.toml"
    file.write_text(text)
    return read_config(file)


def test_every_kind_that_needs_no_gpu_is_in_the_quick_file() -> None:
    scenarios = read_config(QUICK)
    assert {each.kind for each in scenarios} == set(KINDS) - {"postprocess_gpu"}
    for each in scenarios:
        assert set(each.parameters) == set(KINDS[each.kind].parameters)
    gpu = read_config(ROOT / "benchmarks" / "gpu.toml")
    assert all(KINDS[each.kind].load() for each in gpu if each.kind == "dit")
    assert {each.parameters["device"] for each in gpu if each.kind == "dit"} == {"cuda"}
    assert sum(longest_s(each) for each in chosen(gpu, [])) <= 15 * 60  # of a lent machine
    limits = {t.at_most_s for each in gpu for t in each.targets}
    assert {0.090, 0.330, 0.060} <= limits  # of the transformers on an H200


def test_defaults_and_own_values(tmp_path: Path) -> None:
    [one] = read(tmp_path, HEAD + SCENARIO + "runs = 9\nparameters = { tau = 1, blocks = [4] }\n")
    assert (one.runs, one.warm_up, one.time_limit_s) == (9, 1, 60)
    assert one.parameters["tau"] == 1.0 and isinstance(one.parameters["tau"], float)
    assert one.parameters["blocks"] == [4] and one.parameters["features"] == 3072


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs = ", "some.toml is not TOML: "),
        (HEAD, r"some.toml has no \[scenarios.NAME\]"),
        (HEAD + "speed = 1\n" + SCENARIO, "some.toml: key 'speed' is not known, .* runs, "),
        (SCENARIO, "scenario 'one': runs is None, expected a number from 1 to 10000"),
        (HEAD + SCENARIO + "runs = 0\n", "scenario 'one': runs is 0, expected"),
        (HEAD + SCENARIO + "runs = true\n", "scenario 'one': runs is True, expected"),
        (
            HEAD + SCENARIO.replace("postprocess", "magic"),
            "scenario 'one': kind 'magic' is not known, expected one of postprocess, ",
        ),
        (
            HEAD + '[scenarios.one]\nkind = "postprocess"\n',
            "scenario 'one': baseline is None, expected text",
        ),
        (
            HEAD + SCENARIO + "parameters = { colour = 1 }\n",
            "scenario 'one': parameter of kind 'postprocess' 'colour' is not known, expected some "
            "of blocks, features, ",
        ),
        (
            HEAD + SCENARIO + 'parameters = { blocks = ["8"] }\n',
            r"scenario 'one': parameter blocks is \['8'\], expected list of int",
        ),
        (
            HEAD + SCENARIO + 'parameters = { features = "8" }\n',
            "scenario 'one': parameter features is 8, expected int",
        ),
        (
            HEAD + SCENARIO + "slow = 1\n",
            "scenario 'one': slow is 1, expected bool",
        ),
        (
            HEAD + SCENARIO + 'targets = [{ row = "rism", below = 1 }]\n',
            "scenario 'one': key of a target 'below' is not known",
        ),
        (
            HEAD + SCENARIO + 'targets = [{ row = "rism" }]\n',
            "scenario 'one': a target says row and at least one of at_most_s, ",
        ),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.toml cannot be read .*--config FILE"):
        read_config(tmp_path / "nothing.toml")


def test_slow_ones_only_where_they_are_named(tmp_path: Path) -> None:
    slow = SCENARIO.replace(".one]", ".two]") + "slow = true\n"
    scenarios = read(tmp_path, HEAD + SCENARIO + slow)
    assert [each.name for each in chosen(scenarios, [])] == ["one"]
    assert [each.name for each in chosen(scenarios, ["two"])] == ["two"]


def test_scenarios_by_name() -> None:
    scenarios = read_config(QUICK)
    assert [each.name for each in chosen(scenarios, ["vae", "preprocessing"])] == [
        "preprocessing",
        "vae",
    ]
    with pytest.raises(ConfigError, match=r"scenario 'nothing' is not known, .* preprocessing, "):
        chosen(scenarios, ["nothing"])


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nothing"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: scenario 'nothing' is not known") and said.count("\n") == 1


def test_the_list_needs_nothing_but_python() -> None:
    code = (
        "import sys; from benchmarks.__main__ import main; main(['--list']); "
        "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == [
        each.name for each in read_config(QUICK)
    ]
