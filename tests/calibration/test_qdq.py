"""QuantizeLinear and DequantizeLinear in graphs of every type."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rism.calibration import Scales, quantise
from rism.calibration.e4m3 import channel_scales, round_trip
from rism.calibration.kept_layers import kept_layers
from rism.calibration.layers import Layer, find_layers
from rism.calibration.open_graph import open_transformer
from rism.runtime import InputError
from rism.runtime.bundle.reader import Bundle
from tests.calibration.conftest import run_fp8, scales_of

K, N = 24, 10
Q, FF = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.linear_in"
TYPES = {
    "float": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


def graph(kind: str, *, opset: int = 23, stored: str | None = None, width: int = K) -> ir.Model:
    """Two layers on one tensor, and one that is never quantised."""
    made, weight = f"{kind}[b, t, {N}]", f"{stored or kind}[{width}, {N}]"
    given = ", ".join([f"{kind}[b, t, {width}] x", *(f"{weight} w{each}" for each in "qfe")])
    casts = "" if stored is None else "cq = Cast<to=1>(wq) cf = Cast<to=1>(wf) ce = Cast<to=1>(we)"
    taken = "w" if stored is None else "c"
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g ({given}) => ({made} q, {made} f, {made} e) {{
        {casts}
        q = MatMul(x, {taken}q)
        f = MatMul(x, {taken}f)
        e = MatMul(x, {taken}e)
    }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    rng, dtype = np.random.default_rng(0), TYPES[stored or kind]
    for value, name in zip(model.graph.inputs[1:], (Q, FF, "x_embedder"), strict=True):
        array = rng.standard_normal((width, N)).astype(np.float32) * 10 ** rng.uniform(-3, 0, N)
        value.name = f"dit.{name}.weight"
        value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[1:]
    for node in model.graph:
        if node.op_type == "Cast":
            node.outputs[0].dtype = ir.DataType.FLOAT
    return model


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    return run_fp8(ir.to_proto(model).SerializeToString(), x=x)


def activation() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 7, K)).astype(np.float32) * 2


@pytest.mark.parametrize("stored", [None, "float16"])
def test_products_of_rounded_numbers(stored: str | None) -> None:
    x = activation()
    plain = run(graph("float", stored=stored), x)
    model = graph("float", stored=stored)
    layers = find_layers(model)
    weights = {layer.name: np.asarray(layer.weight.const_value, np.float32) for layer in layers}
    assert quantise(model, scales_of(model)) == [Q, FF]
    found = run(model, x)
    for name, made, exact in zip((Q, FF), found, plain, strict=False):
        weight = round_trip(weights[name], channel_scales(weights[name], 1))
        wanted = round_trip(x, 0.013) @ weight
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)
        assert not np.array_equal(made, exact)
    assert np.array_equal(found[2], plain[2]), "the embedder is not quantised"


@pytest.mark.parametrize(
    ("kind", "opset"), [("float16", 20), ("bfloat16", 22), ("float16", 23), ("bfloat16", 23)]
)
def test_what_is_given_has_the_type_of_the_graph(kind: str, opset: int) -> None:
    model = graph(kind, opset=opset)
    quantise(model, scales_of(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for layer in (node for node in model.graph if node.op_type == "MatMul"):
        for value in layer.inputs:
            assert value is not None and value.dtype == TYPES[kind]
    pairs = [node.op_type for node in model.graph]
    assert pairs.count("QuantizeLinear") == pairs.count("DequantizeLinear") == 3, "x is shared"
    assert ("Cast" in pairs) == (opset < 23)
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert node.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
            scale = node.inputs[1]
            assert scale is not None and scale.dtype == ir.DataType.FLOAT


def test_float16_on_the_cpu_is_what_the_types_say() -> None:
    x = activation().astype(np.float16)
    model = graph("float16")
    weight = np.asarray(find_layers(model)[0].weight.const_value, np.float32)
    quantise(model, scales_of(model), casts=True)
    found = run(model, x)[0]
    # In float16 the scales of small channels would be below its smallest normal number.
    assert channel_scales(weight, 1).min() < 6.1e-5
    rounded = round_trip(weight, channel_scales(weight, 1)).astype(np.float16)
    wanted = round_trip(x, 0.013).astype(np.float16).astype(np.float32) @ rounded.astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stored", [None, "float16"])
def test_stored_weights_are_the_same_numbers(tmp_path: Path, stored: str | None) -> None:
    x = activation()
    model, other = graph("float", stored=stored), graph("float", stored=stored)
    quantise(model, scales_of(model))
    file = tmp_path / "fp8.weights"
    assert quantise(other, scales_of(other), weights="stored", file=file) == [Q, FF]
    assert file.stat().st_size == 4096 + K * N
    ir.save(other, tmp_path / "fp8.onnx")
    for one, two in zip(run(model, x), run_fp8(tmp_path / "fp8.onnx", x=x), strict=True):
        assert np.array_equal(one, two)
    names = set(other.graph.initializers)
    assert f"dit.{Q}.weight" not in names and "dit.x_embedder.weight" in names
    with pytest.raises(FileExistsError):
        quantise(graph("float"), scales_of(graph("float")), weights="stored", file=file)


def test_layers_with_scales_of_their_own_do_not_share() -> None:
    model = graph("bfloat16")
    before = {n: v.const_value for n, v in model.graph.initializers.items()}
    quantise(model, scales_of(model, **{FF: 0.02}))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 4
    for name, tensor in before.items():
        assert model.graph.initializers[name].const_value is tensor, "the stored weight stays"


def test_graphs_that_cannot_take_them() -> None:
    model = graph("float")
    with pytest.raises(InputError, match=r"no layer 'transformer_blocks\.7\.x', for which"):
        quantise(model, scales_of(model, **{"transformer_blocks.7.x": 1.0}))
    old = graph("float", opset=17)
    with pytest.raises(InputError, match="opset 17, expected 19 or later"):
        quantise(old, scales_of(old))
    with pytest.raises(InputError, match="need a file"):
        quantise(model, scales_of(model), weights="stored")


def test_a_gemm_with_a_turned_weight_has_its_channels_first() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]> g (float[b, 4] x) => (float[b, 3] y)
        <float[3, 4] w = {1,2,3,4, 10,20,30,40, 100,200,300,400}> {
        y = Gemm<transB = 1>(x, w)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    (layer,) = find_layers(model)
    assert layer.channel_axis == 0
    assert kept_layers([layer.name]) == {"w": "outside the blocks"}
    quantise(model, Scales("", "m", "p", "max", 100.0, 1, {"w": 0.1}, {}))
    x = np.float32([[1, 0, 0, 0], [0, 1, 0, 1]])
    np.testing.assert_allclose(
        run(model, x)[0], x @ np.outer([1, 2, 3, 4], [1, 10, 100]), rtol=0.05
    )


def _rounded(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _bits(layer: Layer) -> bytes:
    assert layer.weight.const_value is not None
    return layer.weight.const_value.tobytes()


def test_the_probe_and_the_embedders_keep_their_numbers(mini_bundle: Bundle) -> None:
    model = open_transformer(mini_bundle).model
    plain = {layer.name: layer for layer in find_layers(model)}
    scales = scales_of(model)
    for capture in mini_bundle.manifest.captures:
        model = open_transformer(mini_bundle, capture=capture).model
        assert len(quantise(model, scales, casts=True)) == 34
        after = {layer.name: layer for layer in find_layers(model)}
        assert set(after) == {"x_embedder", "context_embedder", "last.to_q", "last.to_k"}
        for name, layer in after.items():
            assert not _rounded(layer.activation) and not _rounded(layer.factor), name
            assert _bits(layer) == _bits(plain[name])
        # Nothing between the last quantised product and the capture is quantised either.
        pairs = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        users = {use.node.op_type for node in pairs for use in node.outputs[0].uses()}
        assert users == {"MatMul"}
