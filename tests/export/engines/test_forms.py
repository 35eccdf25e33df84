"""Graphs written as a library takes them compute what they computed."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
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


@pytest.mark.parametrize("graph", ["text_encoder", "transformer.vectors", "transformer.matrices"])
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


def attention(kind: str = "float", *, width: int = 32, causal: int = 0, opset: int = 23) -> str:
    """One attention of two heads, and nothing else."""
    shape = f"{kind}[batch, 2, tokens, {width}]"
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g ({shape} q, {shape} k, {shape} v) => ({shape} out) {{
            [only] out = Attention<is_causal = {causal}>(q, k, v)
        }}"""


def parsed(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("kind", "width", "kept"),
    [
        ("float16", 128, True),
        ("bfloat16", 128, True),
        ("float16", 512, False),
        ("float", 128, False),
    ],
)
def test_only_attention_that_has_a_kernel_is_left_to_it(kind: str, width: int, kept: bool) -> None:
    model = parsed(attention(kind, width=width))
    found = bring_into_form(model, form_for("tensorrt-rtx", "1.7.1.116"))
    assert (found.fused, found.written_out) == ((1, 0) if kept else (0, 1))
    operators = [node.op_type for node in model.graph]
    assert ("Attention" in operators) == kept
    assert ("Softmax" in operators) != kept


def test_attention_that_would_need_another_rewriting_is_refused() -> None:
    with pytest.raises(BuildError, match="attention 'only' has is_causal 1, expected 0"):
        bring_into_form(parsed(attention(causal=1)), WRITTEN)


def test_an_operator_that_an_old_opset_has_not_is_refused() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24]>
        g (float[n] x) => (float[n] out) { out = Swish(x) }"""
    with pytest.raises(BuildError, match="Swish is not in opset 20"):
        bring_into_form(parsed(text), WRITTEN)


def test_a_group_normalisation_of_an_older_bundle_is_written_out() -> None:
    """Opset 20 has an operator of that name whose scale is by group: it must not be left.

    What stands in its place computes the same: see tests/export/graph/test_passes.py.
    """
    shape = "float[batch, 6, height, width]"
    model = parsed(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g ({shape} x, float[6] scale, float[6] bias) => ({shape} out) {{
            out = GroupNormalization<num_groups = 2>(x, scale, bias)
        }}"""
    )
    bring_into_form(model, WRITTEN)
    assert "GroupNormalization" not in {each.op_type for each in model.graph}
    assert model.opset_imports[""] == 20
