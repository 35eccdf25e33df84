"""Graphs written as a library takes them compute what they computed."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rism.export.engines.forms import bring_into_form
from rism.export.engines.targets import form_for
from rism.export.errors import BuildError
from rism.runtime.bundle.reader import resolve_bundle

WRITTEN = form_for("tensorrt", "10.3.0")
SIZES = {"batch": 2, "tokens": 12, "height": 32, "width": 48}


def feeds(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for each in session.get_inputs():
        shape = [SIZES.get(size, size) for size in each.shape]
        if each.name == "attention_mask":
            made[each.name] = np.tril(np.ones(shape, np.int64))[::-1].copy()
        elif "int64" in each.type:
            made[each.name] = rng.integers(0, 50, shape)
        else:
            made[each.name] = rng.standard_normal(shape).astype(np.float32)
    return made


@pytest.mark.parametrize(
    "graph", ["text_encoder", "vae_encoder", "transformer.vectors", "transformer.matrices"]
)
def test_written_out_attention_is_the_same_attention(graph: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(resolve_bundle(), tmp_path / "mini"))
    source, changed = folder / f"{graph}.onnx", folder / "changed.onnx"
    model = ir.load(source)
    before = Counter(node.op_type for node in model.graph.all_nodes())["Attention"]
    found = bring_into_form(model, WRITTEN)
    assert found.fused == 0
    assert found.written_out == before > 0
    assert model.opset_imports[""] == 20
    ir.save(model, changed)
    onnx.checker.check_model(str(changed))
    left = {node.op_type for node in onnx.load(changed, load_external_data=False).graph.node}
    assert not left & {"Attention", "RMSNormalization", "GroupNormalization"}
    first = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    second = ort.InferenceSession(changed, providers=["CPUExecutionProvider"])
    given = feeds(first)
    names = [each.name for each in first.get_outputs()]
    assert names == [each.name for each in second.get_outputs()]
    for name, wanted, got in zip(
        names, first.run(None, given), second.run(None, given), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=name)


def attention(dtype: ir.DataType, *, width: int = 32, **attributes: int) -> ir.Model:
    """One attention of two heads, and nothing else."""
    shape = ir.Shape(["batch", 2, "tokens", width])
    inputs = [ir.Value(name=name, type=ir.TensorType(dtype), shape=shape) for name in "qkv"]
    node = ir.node("Attention", inputs, attributes=attributes, name="only")
    node.outputs[0].name, node.outputs[0].type = "out", ir.TensorType(dtype)
    node.outputs[0].shape = shape
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("dtype", "width", "kept"),
    [
        (ir.DataType.FLOAT16, 128, True),
        (ir.DataType.BFLOAT16, 128, True),
        (ir.DataType.FLOAT16, 512, False),
        (ir.DataType.FLOAT, 128, False),
    ],
)
def test_only_attention_that_has_a_kernel_is_left_to_it(
    dtype: ir.DataType, width: int, kept: bool
) -> None:
    model = attention(dtype, width=width)
    found = bring_into_form(model, form_for("tensorrt-rtx", "1.7.1.116"))
    assert (found.fused, found.written_out) == ((1, 0) if kept else (0, 1))
    operators = [node.op_type for node in model.graph]
    assert ("Attention" in operators) == kept
    assert ("Softmax" in operators) != kept


def test_attention_that_would_need_another_rewriting_is_refused() -> None:
    with pytest.raises(BuildError, match="attention 'only' has is_causal 1, expected 0"):
        bring_into_form(attention(ir.DataType.FLOAT, is_causal=1), WRITTEN)


def test_an_operator_that_an_old_opset_has_not_is_refused() -> None:
    model = attention(ir.DataType.FLOAT)
    model.graph.append(ir.node("Swish", [model.graph.outputs[0]]))
    model.opset_imports[""] = 24
    with pytest.raises(BuildError, match="Swish is not in opset 20"):
        bring_into_form(model, WRITTEN)


def test_a_group_normalisation_of_an_older_bundle_is_written_out() -> None:
    """Opset 20 has an operator of that name whose scale is by group: it must not be left."""
    kinds = ir.TensorType(ir.DataType.FLOAT)
    shapes = {"x": ["batch", 6, "height", "width"], "scale": [6], "bias": [6]}
    inputs = [
        ir.Value(name=name, type=kinds, shape=ir.Shape(shape)) for name, shape in shapes.items()
    ]
    node = ir.node("GroupNormalization", inputs, attributes={"num_groups": 2}, name="only")
    node.outputs[0].name, node.outputs[0].type = "out", kinds
    node.outputs[0].shape = inputs[0].shape
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 23}, name="norm")
    model = ir.Model(graph, ir_version=10)
    before = ir.to_proto(model).SerializeToString()
    bring_into_form(model, WRITTEN)
    assert "GroupNormalization" not in {each.op_type for each in model.graph}
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((2, 6, 5, 3)).astype(np.float32),
        **{name: rng.standard_normal(6).astype(np.float32) for name in ("scale", "bias")},
    }
    after = ir.to_proto(model).SerializeToString()
    wanted, got = (
        ort.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, given)[0]
        for each in (before, after)
    )
    np.testing.assert_allclose(got, wanted, atol=1e-5)
