import re
from pathlib import Path

import pytest

from tests.cli.conftest import invoke
from tests.paths import MINI


def test_a_repository_in_one_command(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    output = tmp_path / "repository"
    flags = ["--max-batch", "4", "--queue-delay", "0", "--device", "cpu", "--prefix", "mini_"]
    shown = invoke("export-triton", "-o", output, *flags)
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["model", "runs", "on", "rows", "joined", "over", "requests"]
    assert "mini_transformer_scores              onnxruntime_onnx   up to 4" in lines
    assert "mini_rism_scores                     ensemble" in lines
    said = re.search(rf"wrote {re.escape(str(output))}, (\d+\.\d) MB copied\n$", shown.stderr)
    assert said is not None, shown.stderr
    # Beside what is copied there are configurations and two small graphs, one with the noise.
    held = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    noise = (MINI / "noise.f32").stat().st_size
    assert 0 <= (held - noise) / 1e6 - float(said[1]) < 0.5
    config = (output / "mini_transformer_scores/config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 0" in config
    assert "kind: KIND_CPU" in config

    again = invoke("export-triton", "-o", output, "-q", code=1)
    assert again.stdout == ""
    assert again.stderr == (
        f"error: {output} exists and is not empty: remove it or choose another place with -o\n"
    )


def test_wrong_values_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    for flags, message in (
        (["--prefix", "A"], "prefix is 'A', expected up to 40 of a-z, 0-9"),
        (["--engine", "none"], "engine is 'none', this bundle has none: build one with rism build"),
    ):
        shown = invoke("export-triton", "-q", "-o", tmp_path / "out", *flags, code=1)
        assert shown.stderr.startswith(f"error: {message}") and shown.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
