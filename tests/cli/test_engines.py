"""Engines on the command line: asked for, listed, refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rism.runtime import start
from rism.runtime.cli.app import app
from rism.runtime.selftest import record
from tests.runtime.fake_tensorrt import ADA, FakeTensorRt, HostDevice, library, variant
from tests.runtime.test_tensorrt_engine import ALL, transformer

Reseal = Callable[..., Path]
runner = CliRunner()


@pytest.fixture
def built(tiny_bundle: Path, reseal: Reseal) -> Path:
    entry = variant(tiny_bundle, {**ALL, "transformer.vectors": transformer(1)}, stripped=True)
    entry |= {"precision": "fp8"}
    scales = tiny_bundle / "scales.json"
    scales.write_text("{}")
    return reseal(
        tiny_bundle,
        lambda data: data.update(engines=[entry], calibration={"file": "scales.json"}),
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, host = FakeTensorRt(), HostDevice()
    monkeypatch.setattr(start, "find_library", lambda target: library(fake, target))
    monkeypatch.setattr(start, "find_driver", lambda: ADA)
    monkeypatch.setattr(start, "this_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(start, "open_device", lambda _: host)


def test_inspect(built: Path) -> None:
    record(built)
    shown = runner.invoke(app, ["inspect", str(built)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    for line in (
        "engine     rtx-fp16: tensorrt-rtx 1.7.1.116 for linux-x86_64, compute capability 8.6, "
        "8.9, fp8, weights from the bundle",
        "           vae_encoder (engines/rtx-fp16/vae_encoder.plan)",
        "           <- image [1, 3, 8, 8] to [1, 3, 256, 256], best [1, 3, 96, 160]",
        "           <- prompt_weights [1, 8]",
        "scales     scales.json for FP8 engines",
    ):
        assert line in lines
    (vectors,) = [line for line in lines if line.startswith("self-test  ")]
    assert vectors.startswith("self-test  selftest.bin by onnxruntime-cpu 1.")
    data = json.loads(runner.invoke(app, ["inspect", str(built), "--json"]).output)
    assert data["engines"][0]["name"] == "rtx-fp16"
    assert data["engines"][0]["graphs"]["vae_encoder"]["shapes"]["image"]["min"] == [1, 3, 8, 8]
    assert data["self_test"]["file"] == "selftest.bin"
    assert data["calibration"] == "scales.json"


@pytest.mark.parametrize(
    "flags",
    [
        ["--provider", "tensorrt-rtx"],
        ["--provider", "tensorrt-rtx", "--precision", "fp8"],
        ["--engine", "rtx-fp16"],
        [],
    ],
)
def test_a_run_names_what_ran(
    built: Path, picture: Path, workplace: Path, machine: None, flags: list[str]
) -> None:
    arguments = ["run", str(picture), "green", "--bundle", str(built), "--json", *flags]
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    (result,) = json.loads(shown.stdout)
    assert (result["provider"], result["precision"]) == ("tensorrt-rtx:0", "fp8")


def test_why_is_said_on_request(built: Path, picture: Path, workplace: Path, machine: None) -> None:
    arguments = ["run", str(picture), "green", "--bundle", str(built), "-v"]
    shown = runner.invoke(app, arguments)
    assert "provider tensorrt-rtx:0: auto: an engine of the bundle fits: engine" in shown.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--provider", "tpu"], 2, "provider is 'tpu', expected one of auto, cpu, cuda, onnx"),
        (["--provider", "cpu+cuda"], 2, "expected different ones joined by +"),
        (["--precision", "int4"], 2, "int4"),
        (["--engine", "x"], 1, "error: engine is 'x', this bundle has rtx-fp16: see rism inspect"),
        (["--provider", "cpu", "--precision", "fp8"], 1, "error: provider cpu computes in float32"),
        (["--provider", "tensorrt"], 1, "error: this bundle has no engine for tensorrt (it has"),
    ],
)
def test_what_cannot_be(
    built: Path,
    picture: Path,
    workplace: Path,
    machine: None,
    flags: list[str],
    code: int,
    says: str,
) -> None:
    shown = runner.invoke(app, ["run", str(picture), "green", "--bundle", str(built), *flags])
    assert shown.exit_code == code
    assert says in shown.stderr
    assert not list(workplace.iterdir())


def test_this_machine_without_a_driver(
    built: Path, picture: Path, workplace: Path, monkeypatch: Any
) -> None:
    """The real library, the real search for a driver: one line."""
    pytest.importorskip("tensorrt_rtx")
    from rism.runtime.driver import find_driver
    from rism.runtime.errors import ProviderError

    find_driver.cache_clear()
    try:
        find_driver()
    except ProviderError as error:
        expected = str(error)
    else:
        pytest.skip("needs a machine without a driver")
    arguments = ["run", str(picture), "green", "--bundle", str(built), "--provider"]
    shown = runner.invoke(app, [*arguments, "tensorrt-rtx"])
    assert shown.exit_code == 1
    assert shown.stderr == f"error: {expected}\n"
    auto = runner.invoke(app, [*arguments, "auto", "-v"])
    assert auto.exit_code == 0
    assert f"provider cpu: auto: tensorrt-rtx did not start ({expected}); this" in auto.stderr
