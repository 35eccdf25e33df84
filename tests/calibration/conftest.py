"""The built-in bundle with the names that the exporter gives today."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir
from safetensors.numpy import load_file

from rism.calibration import Scales
from rism.calibration.layers import find_layers, fingerprint, kept_layers
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.signatures import trace_transformer
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from tests.conftest import seal


def write_transformer(model: OpenModel, precision: str, folder: Path) -> None:
    """Trace a transformer that gives vectors; write its graph and weights into a folder."""
    own = PRECISIONS[precision]
    with WeightFile(folder / "transformer.weights") as file:
        part = model.transformer(own)
        graph = trace_transformer(part, model.spec, CaptureOptions("vectors"), own, None)
        store_weights(graph, {f"dit.{n}": rule for n, rule in part.rules.items()}, file)
        ir.save(graph, folder / "transformer.vectors.onnx")


def scales_of(model: ir.Model, **layers: float) -> Scales:
    """Scales that nobody measured, of every layer that is quantised; some may be given."""
    found = find_layers(model)
    kept = kept_layers([layer.name for layer in found])
    own = {layer.name: 0.013 for layer in found if layer.name not in kept} | layers
    return Scales(fingerprint(found), "mini", "float32", "max", 100.0, 1, own, kept)


def named_weights() -> dict[bytes, str]:
    """The checkpoint's matrices as products take them, with the names that exports give them."""
    folder = find_checkpoint("mini").folder
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = {name: weight for name, weight in load_file(file).items() if weight.ndim == 2}
    *_, last = sorted(name for name in stored if name.endswith("to_qkv_mlp_proj.weight"))
    width = stored[last].shape[1]
    for at, part in enumerate(("to_q", "to_k")):
        stored[f"last.{part}.weight"] = stored[last][at * width : (at + 1) * width]
    return {
        np.ascontiguousarray(weight.T).tobytes(): f"dit.{name}" for name, weight in stored.items()
    }


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in bundle, whose exporter did not name weights, in two capture modes."""
    folder = tmp_path_factory.mktemp("calibration") / "mini"
    shutil.copytree(resolve_bundle(), folder)
    (folder / "transformer.matrices.onnx").unlink()
    names = named_weights()
    for capture in ("vectors", "scores"):
        file = folder / f"transformer.{capture}.onnx"
        model = ir.load(file)
        for value in [*model.graph.initializers.values()]:
            tensor = value.const_value
            if tensor is not None and len(tensor.shape) == 2:
                value.name = names.get(tensor.numpy().tobytes(), value.name)
        ir.save(model, file)
    return seal(folder, lambda manifest: manifest["graphs"].pop("transformer.matrices"))


@pytest.fixture(scope="session")
def mini_bundle(mini_folder: Path) -> Bundle:
    return Bundle.open(mini_folder)


@pytest.fixture
def own_mini(mini_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(mini_folder, tmp_path / "mini"))
