"""Bringing an exported graph into the form that a library takes."""

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from rism.export.engines.primitives import WRITERS, write_out
from rism.export.engines.targets import Form
from rism.export.errors import BuildError

# A library that reads this opset reads every operator as it is exported.
_EXPORTED_OPSET = 23
# Weights of few bits: their type in a listing of layers, and the first opset that has them.
_NARROW = {
    ir.DataType.INT4: ("Int4", 21),
    ir.DataType.INT8: ("Int8", 21),
    ir.DataType.FLOAT4E2M1: ("FP4E2M1", 23),
}


@dataclass(frozen=True)
class Attentions:
    """How many attentions are left to the library's fused kernels, and how many are written out."""

    fused: int
    written_out: int


def bring_into_form(model: ir.Model, form: Form) -> Attentions:
    """Write out what the library has no kernel or no operator for, and lower the opset.

    Needs: shapes and types on the inputs of what is written out. Leaves: the same computation.

    Args:
        model: changed in place.
        form: the library's.

    Raises:
        BuildError: the library's opset lacks an operator of the graph.
    """
    kept = written = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Attention":
            if _has_kernel(node, form):
                kept += 1
                continue
            written += 1
        elif node.op_type not in WRITERS or form.opset >= _EXPORTED_OPSET:
            continue
        write_out(model.graph, node)
    _lower_opset(model, form.opset)
    return Attentions(kept, written)


def _has_kernel(node: ir.Node, form: Form) -> bool:
    query = node.inputs[0]
    assert query is not None
    width = query.shape[-1] if query.shape is not None else None
    return query.dtype in form.fused and isinstance(width, int) and width <= form.widest


def narrow_weights(model: ir.Model) -> dict[str, int]:
    """Count the weights of a graph that are of few bits, by their type in a listing of layers."""
    found: dict[str, int] = {}
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype in _NARROW:
            name, _ = _NARROW[value.dtype]
            found[name] = found.get(name, 0) + value.const_value.size
    return found


def refuse_narrow(model: ir.Model, opset: int) -> None:
    """Refuse weights of few bits that came after an opset.

    Raises:
        BuildError: there are some.
    """
    needed = max([dict(_NARROW.values())[name] for name in narrow_weights(model)], default=0)
    if opset < needed:
        raise BuildError(
            f"weights in few bits need opset {needed} and this library reads {opset}: "
            "update the library, or export with --precision fp16"
        )


def _lower_opset(model: ir.Model, opset: int) -> None:
    """Declare an older opset for the graph, if that opset has every operator of it."""
    if model.opset_imports.get("", opset) <= opset:
        return
    for node in model.graph.all_nodes():
        try:
            onnx.defs.get_schema(node.op_type, opset, node.domain)
        except onnx.defs.SchemaError:
            raise BuildError(
                f"operator {node.op_type} is not in opset {opset}, the newest that this library "
                "reads: update the library"
            ) from None
    model.opset_imports[""] = opset
