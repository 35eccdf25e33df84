"""Scenarios in a file: what is refused, and in what words; both files that are there."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUICK, main
from benchmarks.config import Scenario, chosen, read_config
from benchmarks.harness.errors import ConfigError
from benchmarks.run import longest_s
from benchmarks.scenarios import KINDS
from tests.paths import ROOT

HEAD = "runs = 3\nwarm_up = 1\ntime_limit_s = 60\n"
SCENARIO = '[scenarios.one]\nkind = "postprocess"\nbaseline = "literal, PyTorch"\n'


def read(folder: Path, text: str) -> list[Scenario]:
    file = folder / "some.toml"
    file.write_text(text)
    return read_config(file)


def test_every_kind_is_in_one_of_the_files() -> None:
    scenarios = read_config(QUICK)
    # A provider alone is a part of the scenario of all of them.
    assert {each.kind for each in scenarios} == set(KINDS) - {"postprocess_gpu", "provider"}
    for each in scenarios:
        assert set(each.parameters) == set(KINDS[each.kind].parameters)
    gpu = read_config(ROOT / "benchmarks" / "gpu.toml")
    assert {each.parameters["device"] for each in gpu if each.kind == "dit"} == {"cuda"}
    assert sum(longest_s(each) for each in chosen(gpu, [])) <= 15 * 60  # of a lent machine
    limits = {t.at_most_s for each in gpu for t in each.targets}
    assert {0.090, 0.330} <= limits  # of the transformers on an H200


def test_every_kind_has_its_code() -> None:
    pytest.importorskip("torch")
    for kind in KINDS.values():
        assert callable(kind.load())


def test_defaults_and_own_values(tmp_path: Path) -> None:
    [one] = read(tmp_path, HEAD + SCENARIO + "runs = 9\nparameters = { blocks = [4] }\n")
    assert (one.runs, one.warm_up, one.time_limit_s) == (9, 1, 60)
    assert one.parameters["blocks"] == [4] and one.parameters["features"] == 3072


def test_other_values_for_one_run(tmp_path: Path) -> None:
    text = HEAD + SCENARIO + 'targets = [{ row = "rism", at_most_s = 1.0 }]\n'
    changes = {"size": "64x48", "blocks": "[2, 4]", "runs": "5"}
    [one] = chosen(read(tmp_path, text), [], changes)
    assert (one.runs, one.parameters["size"], one.parameters["blocks"]) == (5, "64x48", [2, 4])
    assert one.targets[0].at_most_s == 1.0
    with pytest.raises(ConfigError, match="'colour' is not known, expected some of blocks, "):
        chosen(read(tmp_path, text), [], {"colour": "red"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs = ", "some.toml is not TOML: "),
        (HEAD, r"some.toml has no \[scenarios.NAME\]"),
        (HEAD + "speed = 1\n" + SCENARIO, "some.toml: key 'speed' is not known, .* runs, "),
        (SCENARIO, "scenario 'one': runs is None, expected a number from 1 to 10000"),
        (HEAD + SCENARIO + "runs = 0\n", "scenario 'one': runs is 0, expected"),
        (
            HEAD + SCENARIO.replace("postprocess", "magic"),
            "scenario 'one': kind 'magic' is not known, expected some of postprocess, ",
        ),
        (
            HEAD + '[scenarios.one]\nkind = "postprocess"\n',
            "scenario 'one': baseline is not given, expected text",
        ),
        (
            HEAD + SCENARIO + "parameters = { colour = 1 }\n",
            "scenario 'one': parameter of kind 'postprocess' 'colour' is not known, expected some "
            "of blocks, features, ",
        ),
        (
            HEAD + SCENARIO + 'parameters = { blocks = ["8"] }\n',
            r"scenario 'one': blocks is \['8'\], expected list of int",
        ),
        (HEAD + SCENARIO + "slow = 1\n", "scenario 'one': slow is 1, expected bool"),
        (
            HEAD + SCENARIO + 'targets = [{ row = "rism" }]\n',
            "scenario 'one': a target needs row and at least one of at_most_s, ",
        ),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)
    with pytest.raises(ConfigError, match=r"nothing.toml cannot be read .*--config FILE"):
        read_config(tmp_path / "nothing.toml")


def test_scenarios_by_name(tmp_path: Path) -> None:
    slow = SCENARIO.replace(".one]", ".slow]") + "slow = true\n"
    other = SCENARIO.replace(".one]", ".other]")
    scenarios = read(tmp_path, HEAD + SCENARIO + slow + other)
    assert [each.name for each in chosen(scenarios, [])] == ["one", "other"]
    assert [each.name for each in chosen(scenarios, ["other", "slow"])] == ["slow", "other"]
    with pytest.raises(ConfigError, match=r"scenario 'nothing' is not known, .* one, slow, other"):
        chosen(scenarios, ["nothing"])


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["run", "nothing"], "scenario 'nothing' is not known"),
        (["contour", "--set", "runs"], "--set runs has no value, expected NAME=VALUE"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {message}") and printed.count("\n") == 1


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
