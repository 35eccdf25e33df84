"""Graph edits that bring an exported graph into the form that a library takes."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from rism.export.engines.errors import BuildError
from rism.export.engines.targets import Form

__all__ = ["Attentions", "bring_into_form"]

_DOMAIN = ""
# What an attention of ours may say; anything else would need another rewriting.
_PLAIN = {"qk_matmul_output_mode": 0, "softcap": 0.0, "is_causal": 0}


@dataclass(frozen=True)
class Attentions:
    """How many attentions of a graph are left to the library's fused kernels, and how many not."""

    fused: int
    written_out: int


def bring_into_form(model: ir.Model, form: Form) -> Attentions:
    """Write out the attentions that the library has no fused kernel for, and lower the opset.

    Needs: shapes and types on the inputs of `Attention`. Leaves: the same computation.

    Args:
        model: changed in place.
        form: the library's.

    Raises:
        BuildError: an operator that the library's opset does not know.
    """
    kept = written = 0
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Attention"]:
        query = node.inputs[0]
        assert query is not None
        width = query.shape[-1] if query.shape is not None else None
        if query.dtype in form.fused and isinstance(width, int) and width <= form.widest:
            kept += 1
            continue
        _write_out(model.graph, node)
        written += 1
    _lower_opset(model, form.opset)
    return Attentions(kept, written)


def _write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Replace an `Attention` by MatMul, Softmax, MatMul: softmax(Q K^T s + mask) V."""
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
    width, heads, key_heads = q.shape[-1], q.shape[1], k.shape[1]
    if not isinstance(width, int) or not isinstance(heads, int) or heads != key_heads:
        raise BuildError(
            f"attention '{node.name}' of shapes {q.shape} and {k.shape} cannot be written out, "
            "expected as many heads of keys as of queries, and sizes that are known"
        )
    build = _Nodes(node)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else width**-0.5
    # Half of it on each side, as the operator's definition has it: nothing overflows.
    root = build.scalar(scale**0.5, q)
    turned = build.add("Transpose", [k], perm=[0, 1, 3, 2])
    scores = build.add("MatMul", [build.add("Mul", [q, root]), build.add("Mul", [turned, root])])
    if mask is not None:
        scores = build.add("Add", [scores, build.additive(mask, q)])
    out = build.add("MatMul", [build.add("Softmax", [scores], axis=-1), v])
    out.shape, out.type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, build.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], out, replace_graph_outputs=True)
    out.name = node.outputs[0].name
    graph.remove(node, safe=True)


class _Nodes:
    """New nodes beside an old one, in its types."""

    def __init__(self, beside: ir.Node) -> None:
        self.nodes: list[ir.Node] = []
        self._stem = beside.name or beside.outputs[0].name or "attention"

    def add(
        self, op: str, inputs: list[ir.Value | None], **attributes: int | list[int]
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=f"{self._stem}.{len(self.nodes)}")
        node.outputs[0].name = f"{node.name}.out"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: float, dtype: ir.DataType) -> ir.Value:
        tensor = ir.Tensor(np.array(value, dtype=dtype.numpy()), dtype=dtype)
        node = ir.node(
            "Constant",
            [],
            attributes={"value": tensor},
            name=f"{self._stem}.{len(self.nodes)}",
        )
        node.outputs[0].name = f"{node.name}.out"
        node.outputs[0].dtype = dtype
        self.nodes.append(node)
        return node.outputs[0]

    def scalar(self, value: float, like: ir.Value) -> ir.Value:
        assert like.dtype is not None
        return self.constant(value, like.dtype)

    def additive(self, mask: ir.Value, like: ir.Value) -> ir.Value:
        """A mask to be added: false becomes the type's smallest number."""
        if mask.dtype != ir.DataType.BOOL:
            return mask
        assert like.dtype is not None
        lowest = self.scalar(_lowest(like.dtype), like)
        return self.add("Where", [mask, self.scalar(0.0, like), lowest])


def _lowest(dtype: ir.DataType) -> float:
    """The most negative number of a float type."""
    return float(ml_dtypes.finfo(dtype.numpy()).min)  # type: ignore[no-untyped-call]


def _lower_opset(model: ir.Model, opset: int) -> None:
    """Say that the graph is of an older opset, which it is where every operator is in it."""
    if model.opset_imports.get(_DOMAIN, opset) <= opset:
        return
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            raise BuildError(
                f"operator {node.op_type} is not in opset {opset}, the newest that this library "
                "reads: update the library"
            ) from None
    model.opset_imports[_DOMAIN] = opset
