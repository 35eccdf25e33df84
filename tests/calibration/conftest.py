"""The built-in bundle, and scales that nobody measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

import onnx_ir as ir

from rism.calibration import Scales
from rism.calibration.layers import find_layers, fingerprint, kept_layers
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.signatures import trace_transformer
from rism.export.precision import PRECISIONS
from rism.export.spec import OpenModel
from rism.runtime.bundle.reader import Bundle, resolve_bundle


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


@pytest.fixture(scope="session")
def mini_bundle() -> Bundle:
    return Bundle.open(resolve_bundle())


@pytest.fixture
def own_mini(mini_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(mini_bundle.path, tmp_path / "mini"))
