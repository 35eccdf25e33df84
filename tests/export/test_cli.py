"""`rism export` as a process: the bundle appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT


def start(checkpoint: Path, output: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "rism",
        "export",
        "--model",
        str(checkpoint),
        "-o",
        str(output),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_an_export_and_its_report(checkpoint: Path, tmp_path: Path) -> None:
    run = start(checkpoint, tmp_path / "b")
    shown, notes = run.communicate(timeout=900)
    assert run.returncode == 0, notes
    assert "transformer.vectors" in shown
    assert "propagated_vectors" in shown
    assert "wrote" in notes
    assert (tmp_path / "b/manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    run = start(checkpoint, tmp_path / "b")
    limit = time.monotonic() + 900
    while not list(tmp_path.glob(".b.*/*.onnx")) and time.monotonic() < limit:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, notes = run.communicate(timeout=900)
    assert run.returncode == 130
    assert "Traceback" not in notes
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(checkpoint: Path) -> None:
    run = start(checkpoint, Path("/proc/nowhere/b"))
    _, notes = run.communicate(timeout=900)
    assert run.returncode == 1
    assert notes.strip().splitlines()[-1].startswith("error: /proc/nowhere/b cannot be written")
