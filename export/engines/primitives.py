"""Operators of newer opsets, written out in operators that every library has.

Each writer takes a node, adds nodes that compute the same, and returns the value that replaces the
node's output.
"""

import ml_dtypes
import onnx_ir as ir

from rism.export.errors import BuildError
from rism.export.graph.nodes import Nodes, Writer, group_normalization, replace_node

# Attributes that `_attention` can write out, with the only value of each.
_PLAIN = {"qk_matmul_output_mode": 0, "softcap": 0.0, "is_causal": 0}


def write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a node by simpler operators.

    Needs: types and shapes on its inputs. Leaves: a value of the same name, type and shape.

    Raises:
        BuildError: the node has attributes, inputs or shapes that cannot be written out.
    """
    replace_node(graph, node, WRITERS[node.op_type])


def _attention(node: ir.Node, build: Nodes) -> ir.Value:
    """Softmax(Q K^T s + mask) V, with the root of the scale s on Q and on K, as ONNX defines it."""
    for name, plain in _PLAIN.items():
        if name in node.attributes and node.attributes[name].value != plain:
            raise BuildError(
                f"attention '{node.name}' has {name} {node.attributes[name].value}, expected "
                f"{plain}: export the bundle again with this version of rism"
            )
    q, k, v, *rest = node.inputs
    mask = rest[0] if rest else None
    if q is None or k is None or v is None or any(each is not None for each in rest[1:]):
        raise BuildError(f"attention '{node.name}' has inputs that cannot be written out")
    assert q.shape is not None
    assert k.shape is not None
    assert q.dtype is not None
    width, heads, key_heads = q.shape[-1], q.shape[1], k.shape[1]
    if not isinstance(width, int) or not isinstance(heads, int) or heads != key_heads:
        raise BuildError(
            f"attention '{node.name}' of shapes {q.shape} and {k.shape} cannot be written out, "
            "expected as many heads of keys as of queries, and sizes that are known"
        )
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else width**-0.5
    root = build.constant(scale**0.5, q.dtype)
    turned = build.add("Transpose", [k], perm=[0, 1, 3, 2])
    scores = build.add("MatMul", [build.add("Mul", [q, root]), build.add("Mul", [turned, root])])
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        lowest = float(ml_dtypes.finfo(q.dtype.numpy()).min)  # type: ignore[no-untyped-call]
        none = build.constant(0.0, q.dtype)
        mask = build.add("Where", [mask, none, build.constant(lowest, q.dtype)])
    if mask is not None:
        scores = build.add("Add", [scores, mask])
    return build.add("MatMul", [build.add("Softmax", [scores], axis=-1), v])


def _rms_normalization(node: ir.Node, build: Nodes) -> ir.Value:
    """X / sqrt(mean(x^2) + epsilon) * scale, with the mean and the root in float32."""
    x, scale = node.inputs
    assert x is not None
    assert scale is not None
    assert x.shape is not None
    axis = node.attributes.get_int("axis", -1)
    if axis not in (-1, len(x.shape) - 1):
        raise BuildError(f"'{node.name}' normalises from axis {axis}, expected the last alone")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    assert epsilon is not None
    wide = build.cast(x, x.dtype, ir.DataType.FLOAT)
    mean = build.add(
        "ReduceMean", [build.add("Mul", [wide, wide]), build.constant([-1])], keepdims=1
    )
    below = build.add("Add", [mean, build.constant(epsilon, ir.DataType.FLOAT)])
    unit = build.add("Div", [wide, build.add("Sqrt", [below])])
    return build.add("Mul", [build.cast(unit, ir.DataType.FLOAT, x.dtype), scale])


WRITERS: dict[str, Writer] = {
    "Attention": _attention,
    "RMSNormalization": _rms_normalization,
    "GroupNormalization": group_normalization,
}
"""The writers of operators that opset 20 lacks, or defines otherwise."""
