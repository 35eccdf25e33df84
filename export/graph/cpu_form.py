"""The form of a graph for CPUs: fewer and larger operators, attention on every core.

It stands beside the graph that GPUs and engines take, on the same weights, and has the same
inputs and outputs. GPUs keep the other: their fused kernels store no matrix of attention.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.onnx_fusions import fuse

from rism.export.graph.nodes import Nodes, replace_node

# ONNX Runtime's Attention gives a head to a thread. Rows of latents are even in both directions.
_PARTS = 4


def cpu_form(file: str) -> str:
    """Return the name of a graph's form for CPUs: vae_encoder.cpu.onnx."""
    return f"{file.removesuffix('.onnx')}.cpu.onnx"


def fit_cpu(model: ir.Model) -> None:
    """Bring a graph into the form for CPUs.

    Needs: types and shapes, float32. Leaves: the same computation; norms written out as one
    operator, scale and bias of channels in one pass over an image, and an attention with a single
    head as one of `_PARTS` heads that share its keys.
    """
    fuse(model)
    for node in list(model.graph):
        if _scale_and_bias(node) is not None:
            assert node.graph is not None
            replace_node(node.graph, node, _scaled)
        query = node.inputs[0] if node.op_type == "Attention" else None
        if query is not None and query.shape is not None and query.shape[1] == 1:
            assert node.graph is not None
            replace_node(node.graph, node, _split)
    common.RemoveUnusedNodesPass()(model)


def _scale_and_bias(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Find x, scale and bias, (C,) each, where a node is x * scale + bias over (B, C, ...)."""
    if node.op_type != "Add" or None in node.inputs:
        return None
    product, *_ = node.inputs
    times = None if product is None or len(product.uses()) > 1 else product.producer()
    if times is None or times.op_type != "Mul":
        return None
    scale, bias = _channels(times.inputs[1]), _channels(node.inputs[1])
    x = times.inputs[0]
    return None if x is None or scale is None or bias is None else (x, scale, bias)


def _channels(value: ir.Value | None) -> ir.Value | None:
    """Find the weight (C,) that a value is with sizes of one behind it."""
    spread = None if value is None else value.producer()
    if value is None or spread is None or spread.op_type != "Reshape":
        return None
    vector = spread.inputs[0]
    if vector is None or not vector.is_initializer() or vector.shape is None:
        return None
    wide = None if value.shape is None else list(value.shape)
    return vector if wide in ([*vector.shape, 1], [*vector.shape, 1, 1]) else None


def _scaled(node: ir.Node, build: Nodes) -> ir.Value:
    """Scale and add in one pass: a batch normalisation whose mean is 0 and variance 1."""
    found = _scale_and_bias(node)
    assert found is not None
    x, scale, bias = found
    assert scale.shape is not None
    channels = scale.shape.numpy()
    zero, one = (
        build.constant(np.full(channels, value), ir.DataType.FLOAT) for value in (0.0, 1.0)
    )
    return build.add("BatchNormalization", [x, scale, bias, zero, one], epsilon=0.0)


def _split(node: ir.Node, build: Nodes) -> ir.Value:
    """Give several heads a part of the queries (B, 1, N, d) each: rows are independent."""
    query, *others = [value for value in node.inputs if value is not None]
    assert query.shape is not None
    width = query.shape[3]
    assert isinstance(width, int)
    heads = build.constant(np.array([0, _PARTS, -1, width]))
    parts = build.add("Reshape", [query, heads])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    read = build.add("Attention", [parts, *others], **attributes)
    return build.add("Reshape", [read, build.constant(np.array([0, 1, -1, width]))])
