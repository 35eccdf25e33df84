"""A provider is one entry of a table: commands run with it, and `rism doctor` tests it."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rism.cli.app import app
from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.engines.onnxruntime import OnnxRuntime
from rism.runtime.engines.providers import PROVIDERS, Provider

STREET = Path(__file__).parents[2] / "examples/street.png"


@pytest.fixture(autouse=True)
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU under another name, which cannot run the VAE encoder and never runs by "auto"."""

    class Dummy(OnnxRuntime):
        def probe(self, device: int) -> str:
            return f"dummies in {super().probe(device)}"

        def runs(self, graph: str) -> bool:
            return graph != "vae_encoder"

    entry = Provider(name="onnxruntime-dummy", label="dummy", make=Dummy, auto=False)
    monkeypatch.setitem(PROVIDERS, entry.name, entry)


def rism(*arguments: str | Path, code: int = 0) -> str:
    shown = CliRunner().invoke(app, [*map(str, arguments)])
    assert shown.exit_code == code, shown.output
    return shown.output


def test_run(workplace: Path) -> None:
    (result,) = json.loads(
        rism("run", STREET, "the green van", "--provider", "dummy+cpu", "--json", "-q")
    )
    assert result["provider"] == "dummy+cpu"
    assert result["area_share"] > 0
    assert "onnxruntime-dummy does not run vae_encoder" in rism(
        "run", STREET, "the green van", "--provider", "onnxruntime-dummy", code=1
    )


def test_eval(workplace: Path) -> None:
    rism("eval", "scenes", "--count", "2", "--provider", "dummy+cpu", "-o", "results")
    result = json.loads((workplace / "results/result.json").read_text())
    assert result["run"]["provider"] == "dummy+cpu"


def test_doctor(tmp_path: Path) -> None:
    bundle = shutil.copytree(resolve_bundle(), tmp_path / "mini")
    shown = rism("doctor", bundle, "--record")
    assert "provider     onnxruntime-dummy: ready, dummies in onnxruntime 1." in shown
    assert "self-test    onnxruntime-dummy: transformer.vectors ok" in shown
    assert "onnxruntime-dummy: vae_encoder" not in shown
    assert "expected one of auto, dummy, cpu" in rism("doctor", "--provider", "x", code=2)
