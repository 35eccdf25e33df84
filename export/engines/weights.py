"""Turning the weights of a graph into inputs, for engines without weights of their own.

A plan whose weights are inputs holds only kernels. Building it takes no more memory than the graph,
and the runtime binds the bundle's own weights to the inputs, once for all plans.
"""

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from rism.runtime.engines.bound_weights import BoundWeight

# Smaller constants stay in the plan, where kernels are made for their values.
_SMALL_BYTES = 1024


def weights_to_inputs(
    model: ir.Model, folders: Mapping[str, str] | None = None
) -> dict[str, BoundWeight]:
    """Turn initializers that are external data into inputs of the graph.

    Needs: initializers as external data. Leaves: the same computation, with inputs of their names
    after the graph's own inputs; small constants stay.

    Args:
        model: changed in place.
        folders: by name of file, the folder of the bundle that it will be in, where it is not the
            top one.

    Returns:
        Where the values of each new input are, by its name.
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
