"""Nodes that take the place of another one, and operators written out in older ones."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


class Nodes:
    """New nodes in the order in which they were asked for; names begin with a stem."""

    def __init__(self, stem: str) -> None:
        self.nodes: list[ir.Node] = []
        self._stem = stem

    def add(
        self, op: str, inputs: list[ir.Value], **attributes: float | list[int] | ir.TensorProtocol
    ) -> ir.Value:
        """Append a node of one output."""
        node = ir.node(op, inputs, attributes=attributes, name=f"{self._stem}.{len(self.nodes)}")
        node.outputs[0].name = f"{node.name}.out"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: npt.ArrayLike, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Append a constant."""
        tensor = ir.Tensor(np.asarray(value, dtype=dtype.numpy()), dtype=dtype)
        return self.add("Constant", [], value=tensor)

    def cast(self, value: ir.Value, dtype: ir.DataType | None, to: ir.DataType | None) -> ir.Value:
        """Append a cast of a value of type `dtype`, unless it has the type already."""
        if dtype == to or to is None:
            return value
        return self.add("Cast", [value], to=int(to))


Writer: TypeAlias = Callable[[ir.Node, Nodes], ir.Value]
"""Appends nodes that compute what a node computes; returns the value for its output's place."""


def replace_node(graph: ir.Graph, node: ir.Node, write: Writer) -> None:
    """Replace a node of one output by what `write` makes of it.

    Needs: what `write` needs. Leaves: a value of the same name, type and shape.
    """
    old = node.outputs[0]
    build = Nodes(node.name or old.name or node.op_type)
    out = write(node, build)
    out.shape, out.type = old.shape, old.type
    graph.insert_before(node, build.nodes)
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    out.name = old.name
    graph.remove(node, safe=True)


def group_normalization(node: ir.Node, build: Nodes) -> ir.Value:
    """Write an instance normalisation of the groups, then scale and bias by channel, in float32.

    Needs: three dimensions or more on its input, and known channels; scale and bias by channel,
    as since opset 21. Free sizes stay free: 0 keeps a dimension, -1 takes what is left.
    """
    x, scale, bias = node.inputs
    assert x is not None
    assert scale is not None
    assert bias is not None
    assert x.shape is not None
    channels, sides = x.shape[1], len(x.shape) - 2
    groups = node.attributes.get_int("num_groups")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    assert isinstance(channels, int)
    assert groups is not None
    assert epsilon is not None

    def reshaped(value: ir.Value, *shape: int) -> ir.Value:
        return build.add("Reshape", [value, build.constant(shape)])

    wide = build.cast(x, x.dtype, ir.DataType.FLOAT)
    rest = [0] * (sides - 1)
    ones, zeros = (
        build.constant(make(groups, np.float32), ir.DataType.FLOAT) for make in (np.ones, np.zeros)
    )
    unit = build.add(
        "InstanceNormalization",
        [reshaped(wide, 0, groups, -1, *rest), ones, zeros],
        epsilon=epsilon,
    )
    unit = reshaped(unit, 0, channels, -1, *rest)
    factor, addend = (
        reshaped(build.cast(each, each.dtype, ir.DataType.FLOAT), channels, *[1] * sides)
        for each in (scale, bias)
    )
    scaled = build.add("Add", [build.add("Mul", [unit, factor]), addend])
    return build.cast(scaled, ir.DataType.FLOAT, x.dtype)
