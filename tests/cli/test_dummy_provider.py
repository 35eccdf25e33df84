"""A provider is one entry of a table: commands run with it, and `rism doctor` tests it."""

import json
import shutil
from pathlib import Path

import pytest

from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.engines.onnxruntime import OnnxRuntime
from rism.runtime.engines.providers import PROVIDERS, Provider
from tests.cli.conftest import invoke
from tests.paths import STREET


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


def test_run(workplace: Path) -> None:
    asked = ("run", STREET, "the green van", "--provider")
    (result,) = json.loads(invoke(*asked, "dummy+cpu", "--json", "-q").output)
    assert result["provider"] == "dummy+cpu"
    assert result["area_share"] > 0
    refused = invoke(*asked, "onnxruntime-dummy", code=1).output
    assert "onnxruntime-dummy does not run vae_encoder" in refused


def test_eval(workplace: Path) -> None:
    invoke("eval", "scenes", "--count", "2", "--provider", "dummy+cpu", "-o", "results")
    result = json.loads((workplace / "results/result.json").read_text())
    assert result["run"]["provider"] == "dummy+cpu"


def test_doctor(tmp_path: Path) -> None:
    bundle = shutil.copytree(resolve_bundle(), tmp_path / "mini")
    shown = invoke("doctor", bundle, "--record").output
    assert "provider     onnxruntime-dummy: ready, dummies in onnxruntime 1." in shown
    assert "self-test    onnxruntime-dummy: transformer.vectors ok" in shown
    assert "onnxruntime-dummy: vae_encoder" not in shown
    assert "expected one of auto, dummy, cpu" in invoke("doctor", "--provider", "x", code=2).stderr
