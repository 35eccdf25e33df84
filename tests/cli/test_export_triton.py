import builtins
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rism.cli.app import app
from rism.runtime.distribution import install_hint

runner = CliRunner()


def test_a_repository_in_one_command(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    output = tmp_path / "repository"
    flags = ["--max-batch", "4", "--queue-delay", "0", "--device", "cpu", "--prefix", "mini_"]
    shown = runner.invoke(app, ["export-triton", "-o", str(output), *flags])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["model", "runs", "on", "rows", "joined", "over", "requests"]
    assert "mini_transformer_scores              onnxruntime_onnx   up to 4" in lines
    assert "mini_rism_scores                     ensemble" in lines
    said = re.search(rf"wrote {re.escape(str(output))}, (\d+\.\d) MB copied\n$", shown.stderr)
    assert said is not None, shown.stderr
    # Beside what is copied there are configurations and two small graphs.
    held = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert 0 <= held / 1e6 - float(said[1]) < 0.5
    config = (output / "mini_transformer_scores/config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 0" in config
    assert "kind: KIND_CPU" in config

    again = runner.invoke(app, ["export-triton", "-o", str(output), "-q"])
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == (
        f"error: {output} exists and is not empty: remove it or choose another place with -o\n"
    )


def test_wrong_values_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    for flags, message in (
        (["--prefix", "A"], "prefix is 'A', expected up to 40 of a-z, 0-9"),
        (["--engine", "none"], "engine is 'none', this bundle has none: build one with rism build"),
    ):
        shown = runner.invoke(app, ["export-triton", "-q", "-o", str(tmp_path / "out"), *flags])
        assert shown.exit_code == 1
        assert shown.stderr.startswith(f"error: {message}") and shown.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "onnx_ir":
            raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")
        return real(name, *args, **kwargs)

    for module in [name for name in sys.modules if name.startswith("rism.export.triton")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", absent)
    shown = runner.invoke(app, ["export-triton", "-o", str(tmp_path / "out")])
    assert shown.exit_code == 1
    assert shown.stderr == (
        "error: rism export-triton needs onnx_ir, which is not installed: "
        f"{install_hint('triton')}\n"
    )
