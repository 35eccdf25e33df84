"""Number types in the graph: the mixed fp16 recipe holds what plain float16 cannot."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from rism.evaluation.scenes.judged import judged_scene
from rism.export import ExportError, ExportOptions, ExportReport, export_bundle
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import KleinModel, open_klein
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.parity.gate import run_graph
from rism.export.precision import PRECISIONS, Precision, apply_precision
from rism.export.spec import ModelSpec
from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.method import equations
from tests.export.small import feeds, make_checkpoint

GRID = (6, 6)
PAST_HALF = 65504.0


def run_as_exported(
    model: KleinModel, precision: Precision, given: dict[str, np.ndarray], mode: str = "vectors"
) -> dict[str, np.ndarray]:
    """PyTorch on the very module that is traced, in its own number types."""
    options = CaptureOptions(mode)
    graph = CaptureGraph(model.transformer(precision).fill(), model.spec, options, precision)
    with torch.no_grad():
        found = graph(**{name: torch.from_numpy(value) for name, value in given.items()})
    return {k: v.numpy() for k, v in zip(options.outputs, found, strict=True)}


def mask(outputs: dict[str, np.ndarray], spec: ModelSpec) -> np.ndarray:
    return (
        equations.segment_tokens(
            outputs["attention_vectors"][0],
            outputs["propagated_vectors"][0],
            outputs["features"][0],
            tau=spec.tau,
        ).scores
        > 0
    )


def test_the_recipe_by_its_layers() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "out": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    large = torch.full((1, 4), 60000.0)
    wanted = layers["out"](large)
    with torch.no_grad():
        layers["out"].weight.fill_(1.0)
        wanted = layers["out"](large)
    apply_precision(layers, PRECISIONS["fp16"], lambda _: torch.float32, into_stream=["out"])
    assert layers["a"].weight.dtype == torch.float16
    assert layers["norm"].weight.dtype == torch.float32
    assert layers["a"](torch.ones(1, 4)).dtype == torch.float32
    # A sum of four times 60,000 is past float16's range, and exact at a 32nd of it.
    torch.testing.assert_close(layers["out"](large), wanted, rtol=1e-3, atol=0)
    assert layers["a"](large * 4).isinf().any() or layers["a"](large * 4).isnan().any()


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose residual stream has the outliers that FLUX is known for."""
    folder = make_checkpoint(tmp_path_factory.mktemp("outliers") / "tiny-klein")
    path = folder / "transformer"
    model = Flux2Transformer2DModel.from_pretrained(path)
    with torch.no_grad():
        # Two channels of every token start beyond float16, and blocks add more of the same.
        model.x_embedder.weight[:2] *= 2e5
        model.context_embedder.weight[:2] *= 2e5
        for block in model.transformer_blocks:
            block.ff.linear_out.weight[1] *= 1e5
    model.save_pretrained(path)
    return folder


def test_past_the_range_of_float16(outliers: Path) -> None:
    model = open_klein(find_checkpoint(str(outliers)))
    assert isinstance(model, KleinModel)
    given = feeds(model.spec, GRID, batch=1)
    wanted = run_as_exported(model, PRECISIONS["fp32"], given)

    stream = _largest_of_stream(model, given)
    assert stream > 2 * PAST_HALF

    plain = Precision("plain", torch.float16, torch.float16, torch.float16, 1.0)
    broken = run_as_exported(model, plain, given)
    assert not all(np.isfinite(value).all() for value in broken.values())

    found = run_as_exported(model, PRECISIONS["fp16"], given)
    for name, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        assert np.abs(found[name] - value).max() / scale < 5e-3, name
    assert (mask(found, model.spec) == mask(wanted, model.spec)).mean() > 0.97


def _largest_of_stream(model: KleinModel, given: dict[str, np.ndarray]) -> float:
    seen: list[float] = []
    dit = model.transformer(PRECISIONS["fp32"]).fill()
    for block in dit.single_transformer_blocks:
        block.register_forward_hook(lambda _m, _a, out: seen.append(float(out.abs().max())))
    graph = CaptureGraph(dit, model.spec, CaptureOptions("vectors"), PRECISIONS["fp32"])
    with torch.no_grad():
        graph(**{name: torch.from_numpy(value) for name, value in given.items()})
    return max(seen)


@pytest.fixture(scope="module")
def half(outliers: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    output = tmp_path_factory.mktemp("half") / "b"
    return export_bundle(str(outliers), output, ExportOptions(precision="fp16"))


def test_the_exported_recipe_holds_the_outliers_too(half: ExportReport, outliers: Path) -> None:
    model = open_klein(find_checkpoint(str(outliers)))
    assert isinstance(model, KleinModel)
    given = feeds(model.spec, GRID, batch=1)
    wanted = run_as_exported(model, PRECISIONS["fp32"], given)
    found = run_graph(half.path / "transformer.vectors.onnx", given)
    for name, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        assert np.abs(found[name] - value).max() / scale < 5e-3, name
    rounding = {k: v for k, v in half.parity["transformer.vectors"].items() if "fp16" in k}
    assert rounding
    assert all(check.passed for check in rounding.values())


def _types(path: Path) -> dict[str, set[str]]:
    """Number types of the results of each kind of node."""
    found: dict[str, set[str]] = {}
    for node in ir.load(path).graph:
        for value in node.outputs:
            if value.dtype is not None and value.dtype.is_floating_point():
                found.setdefault(node.op_type, set()).add(value.dtype.name)
    return found


def test_what_is_half_in_the_graph_and_what_is_not(half: ExportReport) -> None:
    types = _types(half.path / "transformer.vectors.onnx")
    assert types["MatMul"] == {"FLOAT16"}
    assert types["Attention"] == {"FLOAT16"}
    for kept in ("LayerNormalization", "RMSNormalization", "Add", "ReduceMean", "Div"):
        assert types[kept] == {"FLOAT"}, kept
    manifest = Bundle.open(half.path).manifest
    assert (manifest.precision.compute, manifest.precision.storage) == ("float16", "float16")
    for graph in manifest.graphs.values():
        for tensor in [*graph.inputs.values(), *graph.outputs.values()]:
            assert tensor.dtype in ("float32", "int64")


def test_bfloat16_is_computed_as_published(checkpoint: Path, tmp_path: Path) -> None:
    report = export_bundle(str(checkpoint), tmp_path / "b", ExportOptions(precision="bf16"))
    types = _types(report.path / "transformer.vectors.onnx")
    assert types["MatMul"] == {"BFLOAT16"}
    assert types["LayerNormalization"] == {"BFLOAT16"}
    # The probes' queries and keys fit float16, whose masses are eight times finer.
    assert types["Attention"] == {"BFLOAT16", "FLOAT16"}
    assert types["ReduceMean"] == {"FLOAT"}
    manifest = Bundle.open(report.path).manifest
    assert (manifest.precision.compute, manifest.precision.storage) == ("bfloat16", "bfloat16")
    with pytest.raises(ProviderError, match="bfloat16"):
        Segmenter.from_bundle(report.path, provider="cpu")


def test_weights_that_float16_cannot_hold_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "large")
    model = Flux2Transformer2DModel.from_pretrained(folder / "transformer")
    with torch.no_grad():
        model.transformer_blocks[0].ff.linear_in.weight[0, 0] = 1e6
    model.save_pretrained(folder / "transformer")
    with pytest.raises(
        ExportError, match=r"ff\.linear_in\.weight holds 1e\+06, .*--precision bf16"
    ):
        export_bundle(str(folder), tmp_path / "b", ExportOptions(precision="fp16"))
    assert not (tmp_path / "b").exists()


class TorchEngine:
    """An engine of the runtime that is PyTorch on the module that is exported."""

    provider = "torch"

    def __init__(self, module: nn.Module, outputs: tuple[str, ...]) -> None:
        self.module, self.outputs = module, outputs

    def run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = inspect.signature(self.module.forward).parameters
        with torch.no_grad():
            found = self.module(
                **{k: torch.from_numpy(np.array(v)) for k, v in given.items() if k in names}
            )
        found = found if isinstance(found, tuple) else (found,)
        return {k: v.numpy() for k, v in zip(self.outputs, found, strict=True)}


def torch_segmenter(model: KleinModel, precision: Precision) -> Segmenter:
    options = CaptureOptions("vectors")
    graph = CaptureGraph(model.transformer(precision).fill(), model.spec, options, precision)
    engines = {
        "text_encoder": TorchEngine(model.text_encoder(precision).fill(), ("prompt_embeds",)),
        "vae_encoder": TorchEngine(model.vae_encoder(precision).fill(), ("clean_latents",)),
        "transformer": TorchEngine(graph, options.outputs),
    }
    return Segmenter(Bundle.open(resolve_bundle()), engines, capture="vectors")


@pytest.mark.slow
def test_masks_of_mini_in_fp16(tmp_path: Path) -> None:
    """100 scenes against float32: in onnxruntime, and where every product is really rounded.

    onnxruntime's CPU provider keeps the products of a float16 graph in float32, PyTorch does not.
    """
    report = export_bundle("mini", tmp_path / "mini", ExportOptions(precision="fp16"))
    model = open_klein(find_checkpoint("mini"))
    assert isinstance(model, KleinModel)
    wide = Segmenter.from_bundle(provider="cpu")
    narrow = {
        "onnxruntime": Segmenter.from_bundle(report.path, provider="cpu"),
        "torch float16": torch_segmenter(model, PRECISIONS["fp16"]),
    }
    ious: dict[str, list[float]] = {name: [] for name in narrow}
    for index in range(100):
        scene, expression = judged_scene(index)
        image = scene.image_hwc
        wanted = wide.segment(image, expression.text, paper=True).mask
        for name, segmenter in narrow.items():
            mask = segmenter.segment(image, expression.text, paper=True).mask
            ious[name].append(_iou(mask, wanted))
    means = {name: float(np.mean(values)) for name, values in ious.items()}
    print("fp16 against fp32, mean IoU of the masks of 100 scenes:", means)
    assert min(means.values()) >= 0.98, means


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return 1.0 if union == 0 else float((one & other).sum() / union)
