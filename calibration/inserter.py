"""Adding nodes and stored weights to a graph of a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

_PAGE = 4096


class Inserter:
    """Adds nodes before others, and initializers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Insert a node of one output, which has its name."""
        node = ir.node(op_type, inputs, attributes=attributes or {}, name=name)
        return self.insert(before, node, name, dtype, shape)

    def insert(
        self, before: ir.Node, node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None
    ) -> ir.Value:
        """Insert a node, and name and type its first output."""
        value = node.outputs[0]
        value.name, value.dtype, value.shape = name, dtype, shape
        self.graph.insert_before(before, node)
        return value

    def register(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add a tensor to the graph's initializers."""
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """Add float32 numbers to the graph's initializers."""
        return self.register(ir.tensor(np.asarray(array, np.float32), name=name))

    def forget(self, factor: ir.Value, weight: ir.Value) -> None:
        """Remove a weight that nothing uses any more, and the cast between it and its product."""
        cast = factor.producer()
        if cast is not None and not factor.uses():
            self.graph.remove(cast, safe=True)
        if not weight.uses():
            del self.graph.initializers[weight.name or ""]


class WeightsFile:
    """A new file of weights, each on a page of its own."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle, self._path = handle, path

    def add(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], raw: npt.NDArray[Any]
    ) -> ir.ExternalTensor:
        """Write a weight's bytes, and return it as external data of the file's folder."""
        self._handle.write(bytes(-self._handle.tell() % _PAGE))
        offset = self._handle.tell()
        self._handle.write(np.ascontiguousarray(raw).view(np.uint8).data)
        return ir.ExternalTensor(
            location=self._path.name,
            offset=offset,
            length=self._handle.tell() - offset,
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=str(self._path.parent),
        )
