"""What the command line refuses before anything is loaded, and how it helps to type."""

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from rism import __version__
from rism.cli.app import app
from tests.cli.conftest import invoke
from tests.paths import ROOT

COMMANDS = {name: app.get_command(click.Context(app), name) for name in app.list_commands(None)}
NUMERIC = [
    (name, max(option.opts, key=len))
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]


def _refused(command: str, flag: str, value: str) -> bool:
    return f"Error: Invalid value for '{flag}'" in invoke(command, f"{flag}={value}", code=2).stderr


def test_every_number_has_its_range() -> None:
    assert len(NUMERIC) > 25
    outside = [
        ("run", "--tau", "1"), ("run", "--tau", "2"), ("calibrate", "--percentile", "100.1"),
        ("fit-confidence", "--lost", "0.5"), ("build", "--timeout", "inf"),
        ("export", "--size-level", "7"),
    ]  # fmt: skip
    outside += [(*flag, value) for flag in NUMERIC for value in ("-1", "nan")]
    assert [each for each in outside if not _refused(*each)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "b", "--batch", "8/1/1"], "--batch is '8/1/1', expected growing MIN/OPT/MAX"),
        (["ablate", "scenes", "-o", "x", "--blocks", "7-0"], "--blocks is '7-0', expected numbers"),
        (["export", "--model", "m", "-o", "x", "--sizes", "0x8"], "--sizes has '0x8', expected"),
        (["export", "--model", "m", "-o", "x", "--capture", "all"], "expected some of vectors,mat"),
        (["doctor", "--provider", "cpu", "--device", "3"], "--device 3 is a GPU, the CPU has no"),
    ],
)
def test_numbers_in_a_text_too(arguments: list[str], message: str) -> None:
    assert message in invoke(*arguments, code=2).stderr


def test_version_and_wrong_usage() -> None:
    assert invoke("--version").stdout == f"rism {__version__}\n"
    for line in (["run"], ["run", "a.png"], ["walk"], ["run", "a", "--provider", "x"], ["--nope"]):
        shown = invoke(*line, code=2)
        assert shown.stdout == "", line
        assert shown.stderr and "Traceback" not in shown.stderr


def test_help_cuts_no_sentence() -> None:
    assert "..." not in invoke("--help").stdout.partition("Commands:")[2]


COMPLETIONS = {
    "r": ["run", "refine"],
    "run --tok": ["--tokens"],
    "run --upsample ": ["guided", "bilinear"],
    "export --precision b": ["bf16"],
}
ASK = {
    "bash": 'COMP_WORDS=(rism {words} "{last}"); COMP_CWORD={at}; COMPREPLY=(); '
    '_rism_completion rism; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": 'COMP_WORDS="rism {line}" COMP_CWORD={at} _RISM_COMPLETE=zsh_complete rism',
    "fish": 'complete -C "rism {line}"',
}


@pytest.mark.parametrize("shell", ASK)
def test_completion(shell: str, tmp_path: Path) -> None:
    """The shell itself runs what --show-completion prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    rism = tmp_path / "rism"
    rism.write_text(f'#!/bin/sh\nexec {sys.executable} -m rism "$@"\n')
    rism.chmod(0o755)
    asked = []
    for line in COMPLETIONS:
        *words, last = line.split(" ")
        asked.append(
            ASK[shell].format(line=line, words=" ".join(words), last=last, at=len(words) + 1)
        )
    asking = "; echo =; ".join(asked)
    script = f"rism --show-completion {shell} > script; source ./script; {asking}; true"
    run = subprocess.run(
        [shell, "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    found = [part.split() for part in run.stdout.split("=\n")]
    for words, expected in zip(found, COMPLETIONS.values(), strict=True):
        if shell == "bash":
            assert sorted(words) == sorted(expected), run.stderr
        else:
            assert all(any(each in word for word in words) for each in expected), run.stderr
