"""Products with weights in few bits, in the forms that libraries take.

Both forms read the same bytes: integers (out, in), of 4 bits two in a byte, and scales in float16
(out, in / block). `dequantise` writes standard operators, which TensorRT for RTX builds so that the
integers stay in the plan; `multiply_in_blocks` writes onnxruntime's own operator, which reads the
integers as they are. onnxruntime would fuse the standard form only if the weight lay transposed,
and would then hold it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from rism.export.errors import ExportError
from rism.export.graph.passes import TRANSPOSED
from rism.export.quantisation.block_rounding import BlockRounding

INTEGERS, SCALES = "integers", "scales"
BLOCK_WEIGHT = "block_weight"
"""Key of an initializer's `meta`: the weight's name, its rounding, and INTEGERS or SCALES."""

_MICROSOFT = "com.microsoft"
_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}

_Write = Callable[[ir.Graph, ir.Node, str, BlockRounding, tuple[int, int]], None]


def dequantise(model: ir.Model, rounded: Mapping[str, BlockRounding]) -> None:
    """Let `DequantizeLinear` make the weights of products.

    Needs: traced initializers without values, those of `rounded` in the type that the graph
    computes in, each in one product. Leaves: integers and scales as initializers without values,
    whose meta says what they are.

    Args:
        model: changed in place.
        rounded: how weights are rounded, by the names of initializers; those that the graph does
            not have are passed over.
    """
    _rewrite(model, rounded, _dequantise)


def multiply_in_blocks(model: ir.Model, rounded: Mapping[str, BlockRounding]) -> None:
    """Let onnxruntime's `MatMulNBits` compute products; likewise, for graphs in float32.

    Its integers are unsigned: the highest bit of each is flipped when the graph is loaded.
    """
    if rounded:
        model.opset_imports[_MICROSOFT] = 1
    _rewrite(model, rounded, _multiply_in_blocks)


def _rewrite(model: ir.Model, rounded: Mapping[str, BlockRounding], write: _Write) -> None:
    graph = model.graph
    for name, rounding in rounded.items():
        weight = graph.initializers.get(name)
        if weight is None or not weight.uses():
            continue
        [use, *others] = weight.uses()
        node = use.node
        turned = bool(weight.meta.get(TRANSPOSED))
        rows_first = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        if others or use.idx != 1 or not (rows_first or (turned and node.op_type == "MatMul")):
            raise ExportError(
                f"{name} is not in one product alone: this is a fault in the exporter"
            )
        assert weight.shape is not None
        first, second = weight.shape.numpy()
        write(graph, node, name, rounding, (second, first) if turned else (first, second))
        del graph.initializers[name]


def _dequantise(
    graph: ir.Graph, node: ir.Node, name: str, rounding: BlockRounding, shape: tuple[int, int]
) -> None:
    dtype = _compute_type(node)
    integers = _initializer(graph, name, rounding, INTEGERS, _TYPES[rounding.bits], shape)
    scales = _scales(graph, node, name, rounding, shape, dtype)
    attributes = {"axis": 1, "block_size": rounding.block}
    wide = _insert(
        node, "DequantizeLinear", [integers, scales], attributes, f"{name}.rounded", dtype, shape
    )
    if node.op_type == "MatMul":
        turned = (shape[1], shape[0])
        order = {"perm": [1, 0]}
        wide = _insert(node, "Transpose", [wide], order, f"{name}.transposed", dtype, turned)
    node.replace_input_with(1, wide)


def _multiply_in_blocks(
    graph: ir.Graph, node: ir.Node, name: str, rounding: BlockRounding, shape: tuple[int, int]
) -> None:
    rows, width = shape
    block, bits = rounding.block, rounding.bits
    packed = (rows, width // block, block * bits // 8)
    integers = _initializer(graph, name, rounding, INTEGERS, ir.DataType.UINT8, packed)
    flipped = _insert(
        node,
        "BitwiseXor",
        [integers, _highest_bits(graph, bits)],
        {},
        f"{name}.unsigned",
        ir.DataType.UINT8,
        packed,
    )
    scales = _scales(graph, node, name, rounding, shape, _compute_type(node))
    source, made = node.inputs[0], node.outputs[0]
    assert source is not None
    attributes = {"K": width, "N": rows, "bits": bits, "block_size": block}
    product = ir.node(
        "MatMulNBits", [source, flipped, scales], attributes=attributes, domain=_MICROSOFT
    )
    graph.insert_before(node, product)
    product.outputs[0].type, product.outputs[0].shape = made.type, made.shape
    ir.convenience.replace_all_uses_with(made, product.outputs[0], replace_graph_outputs=True)
    product.outputs[0].name = made.name
    graph.remove(node, safe=True)


def _compute_type(node: ir.Node) -> ir.DataType:
    dtype = node.outputs[0].dtype
    assert dtype is not None
    return dtype


def _scales(
    graph: ir.Graph,
    node: ir.Node,
    name: str,
    rounding: BlockRounding,
    shape: tuple[int, int],
    dtype: ir.DataType,
) -> ir.Value:
    """Return a weight's scales in the type that its product computes in."""
    size = rounding.scales_shape(shape)
    scales = _initializer(graph, name, rounding, SCALES, ir.DataType.FLOAT16, size)
    if dtype == ir.DataType.FLOAT16:
        return scales
    return _insert(node, "Cast", [scales], {"to": dtype}, f"{name}.wide_scales", dtype, size)


def _initializer(
    graph: ir.Graph,
    name: str,
    rounding: BlockRounding,
    kind: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
) -> ir.Value:
    value = ir.Value(name=f"{name}.{kind}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.meta[BLOCK_WEIGHT] = (name, rounding, kind)
    graph.initializers[f"{name}.{kind}"] = value
    return value


def _highest_bits(graph: ir.Graph, bits: int) -> ir.Value:
    """Return the byte whose set bits are the highest of each integer in it."""
    name = f"highest_bit_of_{bits}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(0x88 if bits == 4 else 0x80, np.uint8), name=name)
        graph.initializers[name] = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(()), const_value=tensor
        )
    return graph.initializers[name]


def _insert(
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: Mapping[str, int | Sequence[int]],
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes=attributes)
    value = node.outputs[0]
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return value
