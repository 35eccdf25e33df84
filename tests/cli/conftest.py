import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rism.cli.app import app
from tests.paths import ROOT

ENV = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
Start = Callable[..., "subprocess.Popen[bytes]"]
Rism = Callable[..., "subprocess.CompletedProcess[bytes]"]
Run = Callable[..., Result]


def invoke(*arguments: object, code: int = 0, data: bytes | None = None) -> Result:
    """Run `rism` in this process."""
    result = CliRunner().invoke(app, [*map(str, arguments)], input=data)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def picture(colours: np.ndarray, tmp_path: Path) -> Path:
    """`colours` as a file: left half red, right half blue, a green square in the middle."""
    path = tmp_path / "colours.png"
    Image.fromarray(colours).save(path)
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(tiny_bundle: Path, workplace: Path) -> Run:
    """Run `rism run` with the tiny bundle in this process, in the empty folder."""
    return lambda *arguments, **more: invoke("run", *arguments, "--bundle", tiny_bundle, **more)


@pytest.fixture
def start(workplace: Path) -> Start:
    """Start `rism`, or `python` with `module=None`, in the empty folder; pipes all around."""

    def call(
        *arguments: str | Path, module: str | None = "rism", **options: Any
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, *([] if module is None else ["-m", module])]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        options = {"cwd": workplace, "env": ENV, **pipes, **options}
        return subprocess.Popen([*command, *map(str, arguments)], **options)

    return call


@pytest.fixture
def rism(start: Start) -> Rism:
    """Run `rism` to its end."""

    def call(
        *arguments: str | Path, data: bytes = b"", **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        process = start(*arguments, **options)
        out, error = process.communicate(data, timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return call
