"""Number types in the graph: the mixed fp16 recipe holds what plain float16 cannot."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from rism.evaluation.scenes.judged import judged_scene
from rism.export import ExportError, ExportOptions, export_bundle
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import KleinModel, open_klein
from rism.export.families.step1x.model import Step1XModel
from rism.export.graph.capture_graph import CaptureGraph, CaptureOptions
from rism.export.parity.gate import run_graph
from rism.export.parity.inputs import transformer_feeds
from rism.export.precision import PRECISIONS, Precision, apply_precision
from rism.runtime import ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.method import equations
from tests.export.families.step1x.parity import random_inputs
from tests.export.families.step1x.small_model import make_step1x, open_step1x
from tests.export.small import feeds, make_checkpoint

GRID = (6, 6)
PAST_HALF = 65504.0
# An export of Step1X-Edit takes three times as long.
FAMILIES = ["klein", pytest.param("step1x", marks=pytest.mark.slow)]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outliers:
    """A checkpoint whose residual stream has the outliers that FLUX is known for."""

    folder: Path
    model: KleinModel | Step1XModel

    def feeds(self) -> Arrays:
        if isinstance(self.model, KleinModel):
            return feeds(self.model.spec, GRID, batch=1)
        return transformer_feeds(random_inputs(self.model, GRID, batch=1))

    def graph(self, precision: Precision) -> CaptureGraph:
        dit = self.model.transformer(precision).fill()
        return CaptureGraph(dit, self.model.spec, CaptureOptions("vectors"), precision)

    def run(self, precision: Precision) -> Arrays:
        """PyTorch on the very module that is traced, in its own number types."""
        graph = self.graph(precision)
        with torch.no_grad():
            found = graph(**{name: torch.from_numpy(value) for name, value in self.feeds().items()})
        return {k: v.numpy() for k, v in zip(graph.options.outputs, found, strict=True)}

    def check(self, found: Arrays, wanted: Arrays) -> None:
        for name, value in wanted.items():
            scale = max(1.0, float(np.abs(value).max()))
            assert np.abs(found[name] - value).max() / scale < 5e-3, name
        masks = [
            equations.segment_tokens(
                each["attention_vectors"][0],
                each["propagated_vectors"][0],
                each["features"][0],
                tau=self.model.spec.tau,
            ).scores
            > 0
            for each in (found, wanted)
        ]
        assert (masks[0] == masks[1]).mean() > 0.97


@pytest.fixture(scope="module", params=["klein", "step1x"])
def outliers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outliers:
    # Two channels of every token start beyond float16, and blocks add more of the same.
    folder = tmp_path_factory.mktemp("outliers") / "model"
    if request.param == "step1x":
        make_step1x(folder, "1.0")
        file = folder / "step1x-edit-i1258.safetensors"
        names, first, added = ("img_in.weight", "txt_in.weight"), 5e4, ("_mlp.2.weight", 2e4)
    else:
        make_checkpoint(folder)
        [file] = (folder / "transformer").glob("*.safetensors")
        names, first = ("x_embedder.weight", "context_embedder.weight"), 2e5
        added = (".ff.linear_out.weight", 1e5)
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name in names:
            tensor[:2] *= first
        elif name.endswith(added[0]):
            tensor[1] *= added[1]
    save_file(tensors, file, metadata={"format": "pt"})
    if request.param == "step1x":
        return Outliers(folder, open_step1x(folder))
    model = open_klein(find_checkpoint(str(folder)))
    assert isinstance(model, KleinModel)
    return Outliers(folder, model)


def test_the_recipe_by_its_layers() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "out": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    large = torch.full((1, 4), 60000.0)
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


def test_past_the_range_of_float16(outliers: Outliers) -> None:
    wide = outliers.graph(PRECISIONS["fp32"])
    seen: list[float] = []
    wide.dit.last_norm.register_forward_pre_hook(
        lambda _m, args: seen.append(float(args[0].abs().max()))
    )
    with torch.no_grad():
        wide(**{name: torch.from_numpy(value) for name, value in outliers.feeds().items()})
    assert max(seen) > 2 * PAST_HALF
    plain = Precision("plain", torch.float16, torch.float16, torch.float16, 1.0)
    broken = outliers.run(plain)
    assert not all(np.isfinite(value).all() for value in broken.values())
    outliers.check(outliers.run(PRECISIONS["fp16"]), outliers.run(PRECISIONS["fp32"]))


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


@pytest.mark.parametrize("outliers", FAMILIES, indirect=True)
def test_the_exported_recipe(outliers: Outliers, tmp_path: Path) -> None:
    options = ExportOptions(precision="fp16")
    half = export_bundle(str(outliers.folder), tmp_path / "b", options)
    found = run_graph(half.path / "transformer.vectors.onnx", outliers.feeds())
    outliers.check(found, outliers.run(PRECISIONS["fp32"]))
    manifest = Bundle.open(half.path).manifest
    for graph in manifest.graphs:
        if graph != "vae_encoder":
            types = types_of(half.path / f"{graph}.onnx")
            assert types["MatMul"] == {"FLOAT16"}, graph
            assert graph == "modulation" or types["Attention"] == {"FLOAT16"}, graph
            assert types["Add"] == {"FLOAT"}, graph
        rounding = [check for name, check in half.parity[graph].items() if "fp16" in name]
        assert rounding and all(check.passed for check in rounding), graph
    types = types_of(half.path / "transformer.vectors.onnx")
    for kept in ("LayerNormalization", "RMSNormalization", "ReduceMean", "Div"):
        assert types[kept] == {"FLOAT"}, kept
    assert (manifest.precision.compute, manifest.precision.storage) == ("float16", "float16")
    for graph in manifest.graphs.values():
        for tensor in [*graph.inputs.values(), *graph.outputs.values()]:
            assert tensor.dtype in ("float32", "int64")
    # The runtime runs it on a CPU, and says what it computed in.
    image = np.zeros((60, 80, 3), np.uint8)
    result = Segmenter.from_bundle(half.path, provider="cpu").segment(image, "a dog")
    assert result.precision == "float16"


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_computed_as_published(checkpoint: Path, tmp_path: Path, family: str) -> None:
    if family == "step1x":
        checkpoint = make_step1x(tmp_path / "model", "1.1")
    report = export_bundle(str(checkpoint), tmp_path / "b", ExportOptions(precision="bf16"))
    types = types_of(report.path / "transformer.vectors.onnx")
    assert types["MatMul"] == types["LayerNormalization"] == {"BFLOAT16"}
    # The probes' queries and keys fit float16, whose masses are eight times finer.
    assert types["Attention"] == {"BFLOAT16", "FLOAT16"}
    assert types["ReduceMean"] == {"FLOAT"}
    manifest = Bundle.open(report.path).manifest
    for graph in {"text_encoder", "vision_encoder"} & set(manifest.graphs):
        types = types_of(report.path / f"{graph}.onnx")
        assert types["MatMul"] == types["Attention"] == {"BFLOAT16"}, graph
    assert (manifest.precision.compute, manifest.precision.storage) == ("bfloat16", "bfloat16")
    assert not list(report.path.glob("*.cpu.onnx"))  # no CPU has this type
    with pytest.raises(ProviderError, match="bfloat16"):
        Segmenter.from_bundle(report.path, provider="cpu")


def test_weights_that_float16_cannot_hold_are_named(tmp_path: Path) -> None:
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
    bundle = Bundle.open(resolve_bundle())
    spec = replace(model.spec, noisy_grid=bundle.manifest.method.noisy_grid)
    graph = CaptureGraph(model.transformer(precision).fill(), spec, options, precision)
    engines = {
        "text_encoder": TorchEngine(model.text_encoder(precision).fill(), ("prompt_embeds",)),
        "vae_encoder": TorchEngine(model.vae_encoder(precision).fill(), ("clean_latents",)),
        "transformer": TorchEngine(graph, options.outputs),
    }
    return Segmenter(bundle, engines, capture="vectors")


@pytest.mark.slow
def test_masks_of_mini_in_fp16() -> None:
    """In PyTorch, which really rounds every product: onnxruntime's CPU provider does not."""
    model = open_klein(find_checkpoint("mini"))
    assert isinstance(model, KleinModel)
    narrow, wide = torch_segmenter(model, PRECISIONS["fp16"]), Segmenter.from_bundle(provider="cpu")
    ious = []
    for scene, expression in map(judged_scene, range(5)):
        image = scene.image_hwc
        one, other = (
            segmenter.segment(image, expression.text, paper=True).mask
            for segmenter in (narrow, wide)
        )
        union = (one | other).sum()
        ious.append(1.0 if union == 0 else (one & other).sum() / union)
    assert np.mean(ious) >= 0.98, ious
