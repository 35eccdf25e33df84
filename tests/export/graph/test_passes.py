"""Edits of graphs compute what the graphs computed."""

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from rism.export import ExportReport
from rism.export.graph.passes import write_out_group_normalization
from rism.runtime.bundle.reader import Bundle

GROUPS, CHANNELS, EPSILON = 4, 12, 1e-6
SIZES = (
    {"picture": (1, CHANNELS, 6, 10), "flat": (1, CHANNELS, 15)},
    {"picture": (2, CHANNELS, 9, 4), "flat": (3, CHANNELS, 8)},
)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(1, 0.5, CHANNELS).astype(np.float32) for name in ("scale", "bias")}


def normalized(dtype: ir.DataType) -> ir.Model:
    """Two inputs of free sizes, each normalised, on the same named weights.

    One has two free sides as a picture has them, one is flattened as the VAE's attention takes it.
    """
    kind = dtype.name.lower()
    picture, flat = (f"{kind}[batch, {CHANNELS}, {free}]" for free in ("height, width", "tokens"))
    norm = f"GroupNormalization<num_groups = {GROUPS}, epsilon = {EPSILON}>"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        norms ({picture} picture, {flat} flat) => ({picture} picture_out, {flat} flat_out) {{
            picture_out = {norm}(picture, scale, bias)
            flat_out = {norm}(flat, scale, bias)
        }}"""
    )
    for name, values in weights().items():
        tensor = onnx.numpy_helper.from_array(values.astype(dtype.numpy()), name)
        model.graph.initializer.append(tensor)
    return ir.from_proto(model)


def feeds(sizes: dict[str, tuple[int, ...]], dtype: ir.DataType) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    # Far from zero, as after a convolution: a variance in 16 bits would be seen.
    return {name: rng.normal(3, 1, size).astype(dtype.numpy()) for name, size in sizes.items()}


def session(model: ir.Model) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_written_out_group_normalisation_is_the_same_at_every_size() -> None:
    before, model = session(normalized(ir.DataType.FLOAT)), normalized(ir.DataType.FLOAT)
    write_out_group_normalization(model)
    assert "GroupNormalization" not in {node.op_type for node in model.graph}
    assert set(weights()) == set(model.graph.initializers)
    after = session(model)
    assert [(o.name, o.shape) for o in after.get_outputs()] == [
        (o.name, o.shape) for o in before.get_outputs()
    ]
    for sizes in SIZES:
        given = feeds(sizes, ir.DataType.FLOAT)
        for got, wanted in zip(after.run(None, given), before.run(None, given), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "step"), [(ir.DataType.FLOAT16, 2**-10), (ir.DataType.BFLOAT16, 2**-7)]
)
def test_in_16_bits_it_is_rounded_once_at_the_end(dtype: ir.DataType, step: float) -> None:
    model = normalized(dtype)
    write_out_group_normalization(model)
    assert all(value.dtype == dtype for value in model.graph.outputs)
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    factor, addend = (
        torch.from_numpy(each.astype(dtype.numpy()).astype(np.float32))
        for each in weights().values()
    )
    for sizes in SIZES:
        given = feeds(sizes, dtype)
        for got, x in zip(evaluator.run(None, given), given.values(), strict=True):
            wide = torch.from_numpy(x.astype(np.float32))
            wanted = torch.nn.functional.group_norm(wide, GROUPS, factor, addend, EPSILON).numpy()
            # Half a step of the type, and what float32 leaves.
            np.testing.assert_allclose(got.astype(np.float32), wanted, rtol=0.51 * step, atol=1e-5)


def test_no_exported_graph_has_an_operator_that_onnxruntime_takes_apart(
    exported: ExportReport,
) -> None:
    for graph in Bundle.open(exported.path).manifest.graphs.values():
        model = onnx.load(exported.path / graph.file, load_external_data=False)
        found = Counter(node.op_type for node in model.graph.node)
        assert not found["GroupNormalization"], graph.file
