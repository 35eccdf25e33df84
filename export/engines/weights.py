"""Weights of a graph as its inputs: an engine of which every copy of a bundle has the weights.

A plan whose weights are inputs holds kernels and nothing else. It is built in the memory of the
graph alone, with no GPU, and whoever runs it binds the bundle's own weights, once for all plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

__all__ = ["BoundWeight", "weights_to_inputs"]

# Constants below this stay in the plan, where kernels are made for their values.
_SMALL_BYTES = 1024


@dataclass(frozen=True)
class BoundWeight:
    """A weight that a plan takes as an input: where in the bundle it lies.

    Attributes:
        file: relative to the bundle.
        offset: of its first byte.
        length: bytes.
        dtype: as ONNX names it: "bfloat16", "float16", "float32" or "float8_e4m3fn".
        shape: of the input.
    """

    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As the file beside the plan has it."""
        return {
            "file": self.file,
            "offset": self.offset,
            "length": self.length,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


def weights_to_inputs(model: ir.Model) -> dict[str, BoundWeight]:
    """Turn initializers that lie in files into inputs of the graph.

    Needs: initializers as external data. Leaves: the same computation, of inputs of these names
    after those that the graph had; small constants stay.

    Args:
        model: changed in place.

    Returns:
        Where each new input's values lie, by its name.
    """
    graph = model.graph
    bound = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < _SMALL_BYTES:
            continue
        assert tensor.dtype is not None
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape)
        value.const_value = None
        del graph.initializers[name]
        graph.inputs.append(value)
        bound[name] = BoundWeight(
            str(tensor.location),
            tensor.offset or 0,
            tensor.length if tensor.length is not None else tensor.nbytes,
            str(tensor.dtype.numpy()),
            tuple(tensor.shape.numpy()),
        )
    return bound
