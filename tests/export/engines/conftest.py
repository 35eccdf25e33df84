"""The built-in model in float16, as it is exported, without the gate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx_ir")

import onnx_ir as ir

from rism.export.checkpoint.meta_modules import Part
from rism.export.exporter import open_model
from rism.export.families.find import find_checkpoint
from rism.export.graph.capture_graph import CaptureOptions
from rism.export.graph.external_weights import WeightFile, store_weights
from rism.export.graph.signatures import trace_text, trace_transformer, trace_vae
from rism.export.manifest_writer import graph_entry
from rism.export.precision import PRECISIONS, Precision
from rism.export.spec import ModelSpec, OpenModel
from rism.runtime.bundle.reader import resolve_bundle
from tests.conftest import seal

MODES = ("vectors", "scores")


def write_graphs(model: OpenModel, precision: str, folder: Path) -> None:
    """Write every graph of a model and its weights, as an export does."""
    own, spec = PRECISIONS[precision], model.spec
    text, vae, dit = model.text_encoder(own), model.vae_encoder(own), model.transformer(own)
    traced = {f"transformer.{mode}": _captured(dit, spec, mode, own) for mode in MODES}
    parts: dict[str, tuple[Part, dict[str, ir.Model]]] = {
        "text_encoder": (text, {"text_encoder": trace_text(text, spec)}),
        "vae_encoder": (vae, {"vae_encoder": trace_vae(vae, spec, None)}),
        "transformer": (dit, traced),
    }
    for part, (module, graphs) in parts.items():
        prefix = "dit." if part == "transformer" else ""
        rules = {f"{prefix}{name}": rule for name, rule in module.rules.items()}
        with WeightFile(folder / f"{part}.weights") as file:
            for name, graph in graphs.items():
                store_weights(graph, rules, file)
                ir.save(graph, folder / f"{name}.onnx")


def _captured(part: Part, spec: ModelSpec, mode: str, own: Precision) -> ir.Model:
    return trace_transformer(part, spec, CaptureOptions(mode), own, None)


@pytest.fixture(scope="session")
def half_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "mini"
    shutil.copytree(resolve_bundle(), folder)
    for file in [*folder.glob("*.onnx"), *folder.glob("*.weights")]:
        file.unlink()
    write_graphs(open_model(find_checkpoint("mini")), "fp16", folder)

    def change(manifest: dict[str, Any]) -> None:
        manifest["precision"] = {"compute": "float16", "storage": "float16"}
        del manifest["graphs"]["transformer.matrices"]
        manifest["graphs"] = {
            name: graph_entry(folder / f"{name}.onnx") for name in manifest["graphs"]
        }

    return seal(folder, change)


@pytest.fixture
def bundle(half_mini: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half_mini, tmp_path / "mini"))
