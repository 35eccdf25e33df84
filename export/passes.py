"""Small edits of traced graphs, each with what it needs and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

__all__ = ["name_dimensions", "strip_metadata"]


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
