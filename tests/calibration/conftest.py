"""The built-in bundle, and scales that nobody measured."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from rism.calibration import Scales
from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import find_layers, fingerprint
from rism.runtime.bundle.reader import Bundle, resolve_bundle


def scales_of(model: ir.Model, **layers: float) -> Scales:
    """Scales that nobody measured, of every layer that is quantised; some may be given."""
    found = find_layers(model)
    kept = kept_layers([layer.name for layer in found])
    own = {layer.name: 0.013 for layer in found if layer.name not in kept} | layers
    return Scales(fingerprint(found), "mini", "float32", "max", 100.0, 1, own, kept)


def run_fp8(model: bytes | Path, **given: np.ndarray) -> list[np.ndarray]:
    """Run a graph whose pairs of QuantizeLinear and DequantizeLinear stay what they are."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4
    made: list[np.ndarray] = ort.InferenceSession(model, options).run(None, given)
    return made


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy that no test changes: onnx_ir refuses files that other tests have hard-linked."""
    folder = tmp_path_factory.mktemp("built-in") / "mini"
    return Bundle.open(shutil.copytree(resolve_bundle(), folder))


@pytest.fixture
def own_mini(mini_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(mini_bundle.path, tmp_path / "mini"))
