"""A bundle with weights in few bits: its graphs, what libraries make of them, what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from benchmarks.scenarios.fp8 import agreement, score
from rism.calibration import CalibrationOptions, calibrate
from rism.calibration.activation_moments import moments_to_bytes
from rism.calibration.kept_layers import kept_layers
from rism.export import ExportOptions, ExportReport, export_bundle
from rism.export.engines import BuildOptions, build_engines
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import open_klein
from rism.export.parity import gate
from rism.export.precision import find_precision
from rism.export.quantisation.block_rounding import BlockRounding
from rism.runtime import InputError, OutputError, ProviderError, Segmenter
from rism.runtime.bundle.reader import Bundle
from tests.export.families.step1x.small_model import make_step1x
from tests.export.small import make_checkpoint

# Layers of the transformer that are rounded: 12 in the double-stream block, 2 in the single-stream
# block that is not the last.
ROUNDED = 12 + 2
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with heads that TensorRT has kernels for."""
    return make_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "small-klein",
        text={"head_dim": 16},
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        axes_dims_rope=(8, 8, 8, 8),
    )


@pytest.fixture(scope="module")
def narrow(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    options = ExportOptions(captures=("vectors", "scores"), precision="int4", text_precision="int8")
    return export_bundle(str(checkpoint), tmp_path_factory.mktemp("narrow") / "b", options)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def optimised(path: Path, folder: Path) -> Counter[str]:
    """Operators of a graph as onnxruntime's CPU provider runs it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return operators(ir.load(folder / "optimised.onnx"))


def test_standard_operators_for_gpus(narrow: ExportReport) -> None:
    for name, count, kind in (
        ("transformer.vectors", ROUNDED, ir.DataType.INT4),
        ("text_encoder", 7 * 3, ir.DataType.INT8),
    ):
        model = ir.load(narrow.path / f"{name}.onnx")
        assert model.opset_imports == {"": 23}
        nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        assert len(nodes) == count
        for node in nodes:
            integers, scales = node.inputs
            assert integers is not None and scales is not None
            assert (integers.dtype, scales.dtype) == (kind, ir.DataType.FLOAT16)
            assert node.attributes.get_int("axis") == 1
            assert node.outputs[0].dtype == ir.DataType.FLOAT16


def test_onnxruntime_multiplies_in_blocks(narrow: ExportReport, tmp_path: Path) -> None:
    for name, count in (("transformer.vectors", ROUNDED), ("text_encoder", 7 * 3)):
        found = optimised(narrow.path / f"{name}.cpu.onnx", tmp_path)
        assert found["MatMulNBits"] == count
        # The bits are flipped when the graph is loaded, not when it runs.
        assert found["BitwiseXor"] == found["DequantizeLinear"] == 0


def test_both_forms_read_the_same_bytes(narrow: ExportReport) -> None:
    places = []
    for form in ("onnx", "cpu.onnx"):
        graph = ir.load(narrow.path / f"transformer.vectors.{form}").graph
        places.append(
            {
                name: (value.const_value.offset, value.const_value.length)
                for name, value in graph.initializers.items()
                if isinstance(value.const_value, ir.ExternalTensor)
                and name.endswith((".integers", ".scales"))
            }
        )
    assert places[0] == places[1] and len(places[0]) == 2 * ROUNDED


def test_which_layers_stay_wide(checkpoint: Path, narrow: ExportReport) -> None:
    model = open_klein(find_checkpoint(str(checkpoint)))
    part = model.transformer(find_precision("int4"))
    layers = [name.removesuffix(".weight") for name in part.rounded] + [*part.kept]
    assert part.kept == kept_layers(layers)
    assert part.kept["last.to_q"] == "probe" and part.kept["x_embedder"] == "embedder"
    [found] = [p for p in narrow.plan.parts if p.name == "transformer"]
    numbers = sum(part.rules[name].shape[0] * part.rules[name].shape[1] for name in part.rounded)
    stored = sum(each.nbytes(part.rules[name].shape) for name, each in part.rounded.items())
    assert stored == numbers * 4.5 / 8
    assert found.write_bytes == part.nbytes
    assert part.nbytes < (narrow.path / "transformer.weights").stat().st_size
    kept = model.transformer(find_precision("int4", keep=["*.to_q"]))
    assert kept.kept["transformer_blocks.0.attn.to_q"] == "asked for"
    assert len(kept.rounded) == ROUNDED - 1


def test_the_manifest_and_the_result_say_so(narrow: ExportReport) -> None:
    manifest = Bundle.open(narrow.path).manifest
    assert (manifest.precision.compute, manifest.precision.storage) == ("float16", "int4")
    text = manifest.precision_of("text_encoder")
    assert (text.storage, text.cpu) == ("int8", "float32")
    result = Segmenter.from_bundle(narrow.path, provider="cpu").segment(IMAGE, "the red car")
    assert result.precision == "float32"
    checks = narrow.parity["transformer.vectors"]
    assert {"features", "cpu features", "fp16 features"} <= set(checks)


def test_engines_keep_the_bits(narrow: ExportReport) -> None:
    pytest.importorskip("tensorrt_rtx")
    captures = ("vectors",)
    report = build_engines(narrow.path, BuildOptions(gpus=("8.9", "12.0"), captures=captures))
    answers = {
        graph.graph: {check.question: check.answer for check in graph.checks}
        for graph in report.graphs
    }
    assert answers["transformer.vectors"]["weights in 4 bits"] == "yes"
    assert answers["text_encoder"]["weights in 8 bits"] == "yes"
    assert report.precision == "fp16"
    for weights in ("bound", "stripped"):
        with pytest.raises(InputError, match="which go into the plan"):
            build_engines(narrow.path, BuildOptions(gpus=("8.9",), weights=weights))


def test_what_needs_floats_is_refused(narrow: ExportReport, tmp_path: Path) -> None:
    bundle = Bundle.open(narrow.path)
    with pytest.raises(InputError, match=r"stores its transformer in int4, .* --precision bf16"):
        calibrate(bundle, [], CalibrationOptions())
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InputError, match=r"in int4, expected one in 16 bits for fp8"):
        build_engines(narrow.path, BuildOptions(gpus=("8.9",), precision="fp8"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ExportOptions(keep=["*.to_q"]), "no weights are rounded: add --precision"),
        (ExportOptions(precision="int4", block_size=48), "block size is 48, expected one of 16"),
        (ExportOptions(precision="int4", keep=["*.nowhere"]), r"'\*\.nowhere' fits none"),
        (ExportOptions(precision="int4", keep=["*"]), "no layer of the transformer is left"),
        (ExportOptions(text_precision="int2"), "text precision int2 is not known"),
    ],
)
def test_options_that_cannot_be(
    checkpoint: Path, tmp_path: Path, options: ExportOptions, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        export_bundle(str(checkpoint), tmp_path / "b", options)
    assert list(tmp_path.iterdir()) == []


def test_the_text_side_alone(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(precision="bf16", text_precision="int4", parity="blocks")
    report = export_bundle(str(checkpoint), tmp_path / "b", options)
    manifest = json.loads((report.path / "manifest.json").read_text())
    assert manifest["precision"] == {"compute": "bfloat16", "storage": "bfloat16"}
    text = {"compute": "float16", "storage": "int4", "cpu": "float32"}
    assert manifest["graphs"]["text_encoder"]["precision"] == text
    assert "bf16, text side int4" in report.plan.table()
    with pytest.raises(ProviderError, match="bfloat16"):
        Segmenter.from_bundle(report.path, provider="cpu")


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_where_rounding_stops(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def interrupt(_rounding: BlockRounding, _integers: torch.Tensor) -> torch.Tensor:
        assert list(tmp_path.glob(".b.*/*.weights")), "in the middle"
        raise stop

    monkeypatch.setattr(BlockRounding, "pack", interrupt)
    expected = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else OutputError
    with pytest.raises(expected):
        export_bundle(str(checkpoint), tmp_path / "b", ExportOptions(text_precision="int4"))
    assert list(tmp_path.iterdir()) == []


def test_activations_weigh_the_rounding(
    checkpoint: Path, narrow: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Masks of random weights in a few blocks hang on single tokens; in float32 they are compared.
    monkeypatch.setattr(gate, "_ROUNDED", replace(gate._ROUNDED, mask=1.0))
    rng, model = np.random.default_rng(0), open_klein(find_checkpoint(str(checkpoint)))
    part, file = model.transformer(find_precision("int4")), tmp_path / "a.npz"
    power = {
        name.removesuffix(".weight"): np.stack([a.T @ a for a in rng.normal(size=(n // 8, 9, 8))])
        for name in part.rounded
        for n in [part.rules[name].shape[1]]
    }
    file.write_bytes(moments_to_bytes({name: each.astype("f4") for name, each in power.items()}))
    options = ExportOptions(precision="int4", activations=file, parity="blocks")
    # Its gate rounds the weights of a few blocks, which have other numbers there, as it did.
    report = export_bundle(str(checkpoint), tmp_path / "b", options)
    errors = [
        {each.name: each.weight_error or 0.0 for each in written.rounded if each.kept is None}
        for written in (report, narrow)
    ]
    assert len(power) == ROUNDED and all(errors[0][name] > errors[1][name] for name in power)
    del power["single_transformer_blocks.0.attn.to_out"]
    file.write_bytes(moments_to_bytes({name: each.astype("f4") for name, each in power.items()}))
    with pytest.raises(InputError, match=r"no activations .* 'single_transformer_blocks\.0\.attn"):
        export_bundle(str(checkpoint), tmp_path / "c", options)
    with pytest.raises(InputError, match="no weights of the transformer are rounded"):
        ExportOptions(precision="bf16", activations=file).check()


@pytest.mark.slow
def test_masks_of_mini(tmp_path: Path) -> None:
    """The bars, with fewer scenes than `python -m benchmarks few-bits-masks`."""
    wanted = score(Segmenter.from_bundle(provider="cpu"), 30)
    for precision, iou, points in (("int8", 0.99, 0.5), ("int4", 0.97, 1.5)):
        options = ExportOptions(precision=precision, text_precision=precision, noisy_grid=2)
        report = export_bundle("mini", tmp_path / precision, options)
        found = agreement(score(Segmenter.from_bundle(report.path, provider="cpu"), 30), wanted)
        assert found.mean_iou >= iou and found.lost_points <= points, precision
        assert found.mean_iou < 1.0, "rounding changes something"


@pytest.mark.slow
def test_step1x_block_by_block(tmp_path: Path) -> None:
    options = ExportOptions(precision="int4", text_precision="int4", parity="blocks")
    report = export_bundle(str(make_step1x(tmp_path / "model", "1.0")), tmp_path / "b", options)
    for name in ("transformer.vectors", "text_encoder", "vision_encoder"):
        assert operators(ir.load(report.path / f"{name}.cpu.onnx"))["MatMulNBits"] > 5, name
    graph = ir.load(report.path / "transformer.vectors.onnx").graph
    wide = [name for name in graph.initializers if "connector" in name or ".norm.linear" in name]
    assert len(wide) > 10 and not any(name.endswith(".integers") for name in wide)
    result = Segmenter.from_bundle(report.path, provider="cpu").segment(IMAGE, "the red car")
    assert result.mask.shape == IMAGE.shape[:2]
