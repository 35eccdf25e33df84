"""What the command line refuses before anything is loaded, and how it helps to type."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from rism.runtime.cli.app import app

ROOT = Path(__file__).parents[2]
runner = CliRunner()


def _numeric() -> Iterator[tuple[str, str]]:
    """Every command with each of its flags that is a number."""
    for command in app.registered_commands:
        assert command.callback is not None
        for flag, hint in get_type_hints(command.callback).items():
            if {int, float} & {hint, *get_args(hint)}:
                name = command.name or command.callback.__name__
                yield name, "--" + flag.replace("_", "-")


def _refused(command: str, flag: str, value: str) -> bool:
    shown = runner.invoke(app, [command, f"{flag}={value}"])
    assert shown.exit_code == 2
    return f"Error: Invalid value for '{flag}'" in shown.stderr


def test_every_number_has_its_range() -> None:
    flags = list(_numeric())
    assert len(flags) > 25
    wrong = [
        (*flag, value) for flag in flags for value in ("-1", "nan") if not _refused(*flag, value)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("run", "--tau", "1"),
        ("run", "--tau", "2"),
        ("calibrate", "--percentile", "100.1"),
        ("fit-confidence", "--lost", "0.5"),
        ("build", "--timeout", "inf"),
        ("export", "--size-level", "7"),
    ],
)
def test_a_number_out_of_range_is_wrong_usage(command: str, flag: str, value: str) -> None:
    assert _refused(command, flag, value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "b", "--batch", "8/1/1"], "--batch is '8/1/1', expected growing MIN/OPT/MAX"),
        (["ablate", "scenes", "-o", "x", "--blocks", "7-0"], "--blocks is '7-0', expected numbers"),
        (["export", "--model", "m", "-o", "x", "--sizes", "0x8"], "--sizes has '0x8', expected"),
        (["doctor", "--provider", "cpu", "--device", "3"], "--device 3 is a GPU, the CPU has no"),
    ],
)
def test_numbers_in_a_text_too(arguments: list[str], message: str) -> None:
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 2
    assert message in shown.stderr


def test_help_cuts_no_sentence() -> None:
    shown = runner.invoke(app, ["--help"]).stdout
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("shell", "ask"),
    [
        ("bash", 'COMP_WORDS=(rism run --upsample ""); COMP_CWORD=3; _rism_completion rism; '
                 'echo "${COMPREPLY[@]}"'),
        ("zsh", '_TYPER_COMPLETE_ARGS="rism run --upsample " _RISM_COMPLETE=complete_zsh rism'),
        ("fish", 'complete -C "rism run --upsample "'),
    ],
)  # fmt: skip
def test_completion(shell: str, ask: str, tmp_path: Path) -> None:
    """As the shell itself runs what --show-completion prints; it is found out by its process."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    rism = tmp_path / "rism"
    rism.write_text(f'#!/bin/sh\nexec {sys.executable} -m rism "$@"\n')
    rism.chmod(0o755)
    script = tmp_path / "script"
    run = subprocess.run(
        [shell, "-c", f"rism --show-completion > {script}; source {script}; {ask}; true"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    assert "guided" in run.stdout and "bilinear" in run.stdout, run.stderr
