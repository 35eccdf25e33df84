"""Weights of a graph as its inputs: an engine of which every copy of a bundle has the weights.

A plan whose weights are inputs holds kernels and nothing else. It is built in the memory of the
graph alone, with no GPU, and whoever runs it binds the bundle's own weights, once for all plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from rism.runtime.engines.bound_weights import BoundWeight

__all__ = ["weights_to_inputs"]

# Constants below this stay in the plan, where kernels are made for their values.
_SMALL_BYTES = 1024


def weights_to_inputs(
    model: ir.Model, folders: Mapping[str, str] | None = None
) -> dict[str, BoundWeight]:
    """Turn initializers that lie in files into inputs of the graph.

    Needs: initializers as external data. Leaves: the same computation, of inputs of these names
    after those that the graph had; small constants stay.

    Args:
        model: changed in place.
        folders: of files that are to lie in a folder of the bundle, by their names.

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
        location = str(tensor.location)
        bound[name] = BoundWeight(
            location,
            tensor.offset or 0,
            tensor.length if tensor.length is not None else tensor.nbytes,
            str(tensor.dtype.numpy()),
            tuple(tensor.shape.numpy()),
        )
        if folders is not None and location in folders:
            bound[name] = replace(bound[name], file=f"{folders[location]}/{location}")
    return bound
