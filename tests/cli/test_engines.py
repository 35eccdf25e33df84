"""Engines on the command line: asked for, listed, refused."""

import json
from pathlib import Path

import pytest

from rism.runtime.diagnostics.selftest import record
from tests.cli.conftest import Run, invoke
from tests.conftest import Reseal
from tests.runtime.engines.fake_tensorrt import stand_in, variant
from tests.runtime.engines.profiles import ALL, transformer


@pytest.fixture
def built(tiny_bundle: Path, reseal: Reseal) -> Path:
    graphs = {**ALL, "transformer.vectors": transformer(1)}
    entry = variant(tiny_bundle, graphs, stripped=True, precision="fp8")
    (tiny_bundle / "scales.json").write_text("{}")
    return reseal(
        tiny_bundle, lambda data: data.update(engines=[entry], calibration={"file": "scales.json"})
    )


@pytest.fixture
def ask(built: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, workplace: Path) -> Run:
    """Run with the built bundle on a machine with TensorRT for RTX, in an empty folder."""
    stand_in(monkeypatch)
    return lambda *flags, **more: invoke("run", picture, "green", "--bundle", built, *flags, **more)


def test_inspect(built: Path) -> None:
    record(built)
    lines = invoke("inspect", built).output.splitlines()
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
    data = json.loads(invoke("inspect", built, "--json").output)
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
def test_a_run_names_what_ran(ask: Run, flags: list[str]) -> None:
    shown = ask("--json", "-v", *flags)
    (result,) = json.loads(shown.stdout)
    assert (result["provider"], result["precision"]) == ("tensorrt-rtx:0", "fp8")
    if not flags:
        why = "provider tensorrt-rtx:0: auto: an engine of the bundle fits: engine"
        assert why in shown.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--provider", "tpu"], 2, "provider is 'tpu', expected one of auto, cpu, cuda, rtx"),
        (["--provider", "cpu+cuda"], 2, "expected different ones joined by +"),
        (["--precision", "int4"], 2, "int4"),
        (["--engine", "x"], 1, "error: engine is 'x', this bundle has rtx-fp16: see rism inspect"),
        (["--provider", "cpu", "--precision", "fp8"], 1, "error: provider cpu computes in float32"),
        (["--provider", "tensorrt"], 1, "error: this bundle has no engine for tensorrt (it has"),
    ],
)
def test_what_cannot_be(ask: Run, workplace: Path, flags: list[str], code: int, says: str) -> None:
    assert says in ask(*flags, code=code).stderr
    assert not list(workplace.iterdir())
