"""Number types in Step1X-Edit's graphs: what float16 cannot hold, the mixed recipe does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from rism.export import ExportOptions, ExportReport, export_bundle
from rism.export.families.step1x.model import Step1XModel
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.parity.gate import run_graph
from rism.export.parity.inputs import transformer_feeds
from rism.export.precision import PRECISIONS, Precision
from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle
from rism.runtime.method import equations
from tests.export.families.step1x.parity import random_inputs
from tests.export.families.step1x.small_model import make_step1x, open_step1x, picture

PAST_HALF = 65504.0
FILE = "step1x-edit-i1258.safetensors"


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose residual stream has the outliers that FLUX is known for."""
    folder = make_step1x(tmp_path_factory.mktemp("outliers") / "model", "1.0")
    tensors = load_file(folder / FILE)
    for name, tensor in tensors.items():
        if name in ("img_in.weight", "txt_in.weight"):
            tensor[:2] *= 5e4  # two channels of every token begin beyond float16
        elif name.endswith("_mlp.2.weight"):
            tensor[1] *= 2e4  # and blocks add more of the same
    save_file(tensors, folder / FILE)
    return folder


def run_as_exported(model: Step1XModel, precision: Precision) -> dict[str, np.ndarray]:
    """PyTorch on the very module that is traced, in its own number types."""
    feeds = transformer_feeds(random_inputs(model, (6, 6), batch=1), None)
    options = CaptureOptions("vectors")
    graph = CaptureGraph(model.transformer(precision).fill(), model.spec, options, precision)
    with torch.no_grad():
        found = graph(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return {k: v.numpy() for k, v in zip(options.outputs, found, strict=True)}


def mask(outputs: dict[str, np.ndarray], model: Step1XModel) -> np.ndarray:
    return (
        equations.segment_tokens(
            outputs["attention_vectors"][0],
            outputs["propagated_vectors"][0],
            outputs["features"][0],
            tau=model.spec.tau,
        ).scores
        > 0
    )


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return all(
        np.abs(found[name] - value).max() / max(1.0, float(np.abs(value).max())) < 5e-3
        for name, value in wanted.items()
    )


def test_past_the_range_of_float16(outliers: Path) -> None:
    model = open_step1x(outliers)
    assert largest_of_stream(model) > 2 * PAST_HALF
    wanted = run_as_exported(model, PRECISIONS["fp32"])
    plain = Precision("plain", torch.float16, torch.float16, torch.float16, 1.0)
    broken = run_as_exported(model, plain)
    assert not all(np.isfinite(value).all() for value in broken.values())
    found = run_as_exported(model, PRECISIONS["fp16"])
    assert close(found, wanted)
    assert (mask(found, model) == mask(wanted, model)).mean() > 0.97


def largest_of_stream(model: Step1XModel) -> float:
    seen: list[float] = []
    dit = model.transformer(PRECISIONS["fp32"]).fill()
    dit.last_norm.register_forward_pre_hook(
        lambda _m, args: seen.append(float(args[0].abs().max()))
    )
    graph = CaptureGraph(dit, model.spec, CaptureOptions("vectors"), PRECISIONS["fp32"])
    feeds = transformer_feeds(random_inputs(model, (6, 6), batch=1), None)
    with torch.no_grad():
        graph(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return max(seen)


@pytest.fixture(scope="module")
def half(outliers: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    output = tmp_path_factory.mktemp("half") / "b"
    return export_bundle(str(outliers), output, ExportOptions(precision="fp16"))


def types_of(path: Path) -> dict[str, set[str]]:
    """Number types of the results of each kind of node."""
    found: dict[str, set[str]] = {}
    for node in ir.load(path).graph:
        for value in node.outputs:
            if value.dtype is not None and value.dtype.is_floating_point():
                # A product of two matrices has another name than one of stacks of them.
                kind = "MatMul" if node.op_type == "Gemm" else node.op_type
                found.setdefault(kind, set()).add(value.dtype.name)
    return found


@pytest.mark.slow
def test_the_exported_recipe(half: ExportReport, outliers: Path) -> None:
    model = open_step1x(outliers)
    wanted = run_as_exported(model, PRECISIONS["fp32"])
    feeds = transformer_feeds(random_inputs(model, (6, 6), batch=1), None)
    found = run_graph(half.path / "transformer.vectors.onnx", feeds)
    assert close(found, wanted)
    assert (mask(found, model) == mask(wanted, model)).mean() > 0.97
    for graph in ("transformer.vectors", "text_encoder", "vision_encoder"):
        types = types_of(half.path / f"{graph}.onnx")
        assert types["MatMul"] == {"FLOAT16"}, graph
        assert types["Attention"] == {"FLOAT16"}, graph
        assert types["Add"] == {"FLOAT"}, graph
        assert any("fp16" in output for output in half.parity[graph]), graph
    types = types_of(half.path / "transformer.vectors.onnx")
    for kept in ("LayerNormalization", "RMSNormalization", "ReduceMean", "Div"):
        assert types[kept] == {"FLOAT"}, kept
    manifest = Bundle.open(half.path).manifest
    assert (manifest.precision.compute, manifest.precision.storage) == ("float16", "float16")
    for spec in manifest.graphs.values():
        for tensor in [*spec.inputs.values(), *spec.outputs.values()]:
            assert tensor.dtype in ("float32", "int64")
    # The lean runtime runs it on a CPU, and says what it computed in.
    result = Segmenter.from_bundle(half.path, provider="cpu").segment(picture(60, 80), "a dog")
    assert result.precision == "float16"


@pytest.mark.slow
def test_bfloat16_is_computed_as_published(tmp_path: Path) -> None:
    checkpoint = make_step1x(tmp_path / "model", "1.1")
    report = export_bundle(str(checkpoint), tmp_path / "b", ExportOptions(precision="bf16"))
    types = types_of(report.path / "transformer.vectors.onnx")
    assert types["MatMul"] == {"BFLOAT16"}
    assert types["LayerNormalization"] == {"BFLOAT16"}
    # The probes' queries and keys fit float16, whose masses are eight times finer.
    assert types["Attention"] == {"BFLOAT16", "FLOAT16"}
    assert types["ReduceMean"] == {"FLOAT"}
    for graph in ("text_encoder", "vision_encoder"):
        types = types_of(report.path / f"{graph}.onnx")
        assert types["MatMul"] == types["Attention"] == {"BFLOAT16"}, graph
    with pytest.raises(ProviderError, match="bfloat16"):
        Segmenter.from_bundle(report.path, provider="cpu")
