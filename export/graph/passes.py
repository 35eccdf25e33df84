"""Small edits of traced graphs, each with what it needs and what it leaves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from rism.export.graph.nodes import group_normalization, replace_node

TRANSPOSED = "transposed"


@contextmanager
def hidden_weights(model: ir.Model, known: Mapping[str, ir.TensorProtocol]) -> Iterator[None]:
    """Make the initializers inputs for a while, so that no pass asks for their values.

    Needs: nothing. Leaves: what was done meanwhile, the initializers that are still used without
    values, and those that a pass added as they are.

    Args:
        model: the graph, changed in place.
        known: initializers that have values; passes may compute with them.
    """
    graph = model.graph
    for name, tensor in known.items():
        if name in graph.initializers:
            graph.initializers[name].const_value = tensor
    weights = [value for name, value in graph.initializers.items() if name not in known]
    inputs = list(graph.inputs)
    for value in weights:
        value.const_value = None
        del graph.initializers[value.name or ""]
        graph.inputs.append(value)
    yield
    del graph.inputs[:]
    graph.inputs.extend(inputs)
    for value in weights:
        if value.uses():
            graph.initializers[value.name or ""] = value


def write_out_group_normalization(model: ir.Model) -> None:
    """Let an instance normalisation do what ONNX Runtime has no kernel for.

    `GroupNormalization` is a function there, of some fourteen operators that each pass over the
    image. PyTorch's exporter writes the same five before opset 21.

    Needs: types and shapes. Leaves: no `GroupNormalization`; the same computation in float32,
    on scales and biases of the same names.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type == "GroupNormalization":
            assert node.graph is not None
            replace_node(node.graph, node, group_normalization)


def simplify(model: ir.Model) -> None:
    """Fold constants and drop what is not used.

    Needs: values for the initializers that may be computed with. Leaves: the same computation;
    constants as initializers. What engines do when they load a graph (pattern rewriting) is left
    to them: on a graph of real size it takes longer than everything else together.
    """
    common.InlinePass()(model)
    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True)
        common.IdentityEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def absorb_transposes(model: ir.Model) -> None:
    """Let the stored weight be transposed instead of every run of the graph.

    Needs: initializers without values. Leaves: no `Transpose` of a whole two-dimensional weight,
    directly or behind a `Cast`; those weights have their sizes swapped and say so in their
    `meta`.
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Transpose"]:
        source = node.inputs[0]
        assert source is not None
        cast = source.producer()
        if cast is not None and (cast.op_type != "Cast" or len(source.uses()) != 1):
            continue
        weight = source if cast is None else cast.inputs[0]
        order = node.attributes.get_ints("perm", [1, 0])
        if (
            weight is None
            or not weight.is_initializer()
            or weight.const_value is not None
            or len(weight.uses()) != 1
            or list(order) != [1, 0]
        ):
            continue
        assert weight.shape is not None
        swapped = ir.Shape([weight.shape[1], weight.shape[0]])
        weight.shape = swapped
        source.shape = swapped
        weight.meta[TRANSPOSED] = True
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)


def name_dimensions(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Give free dimensions the names of docs/bundle.md.

    Needs: inputs whose free dimensions are torch's symbols (s12). Leaves: the same symbols
    renamed on every value where they stand alone; products and sums keep torch's spelling,
    but for outputs that `dynamic` names.

    Args:
        model: the graph, changed in place.
        dynamic: for each input its free dimensions and their names; for an output those that
            are computed from several.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic.get(value.name or "", {}).items():
            assert value.shape is not None
            names[str(value.shape[axis])] = name
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])
    for value in model.graph.outputs:
        for axis, name in dynamic.get(value.name or "", {}).items():
            assert value.shape is not None
            sizes = list(value.shape)
            sizes[axis] = ir.SymbolicDim(name)
            value.shape = ir.Shape(sizes)


def strip_metadata(model: ir.Model) -> None:
    """Drop what the tracer noted for debugging: stack traces, module paths, source lines.

    Needs: nothing. Leaves: the same computation, in a file a tenth of the size that says
    nothing about the machine it was made on.
    """
    model.doc_string = model.graph.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in _values(model):
        value.metadata_props.clear()
        value.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.outputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _renamed(size: Any, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else names.get(str(size), str(size.value))
