"""Graphs of a bundle, opened for edits: their weights stay on the disk."""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.bundle.reader import Bundle
from rism.runtime.errors import BundleError, InputError, one_line

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class OpenGraph:
    """A graph in memory, with its entry in the manifest.

    Initializers in the bundle's `.weights`, which are in `folder`, are mapped when asked for.
    """

    model: ir.Model
    folder: Path
    spec: GraphSpec


def open_transformer(bundle: Bundle, *, capture: str | None = None) -> OpenGraph:
    """Open a transformer graph, by default of the default capture; all have the same layers."""
    manifest = bundle.manifest
    size_wh = manifest.geometry.sizes[0] if manifest.geometry.sizes else None
    name = f"transformer.{capture or manifest.default_capture}"
    return open_graph(bundle, manifest.at_size(name, size_wh))


def expect_float_weights(bundle: Bundle) -> None:
    """Refuse a bundle whose transformer has weights in few bits: there is nothing left to round.

    Raises:
        InputError: it is one.
    """
    stored = bundle.manifest.precision.storage
    if stored in ("int4", "int8"):
        raise InputError(
            f"bundle '{bundle.path}' stores its transformer in {stored}, expected one in floats to "
            "calibrate: rism export --precision bf16 -o DIR makes it"
        )


def open_graph(bundle: Bundle, name: str) -> OpenGraph:
    """Open a graph by its name in the manifest.

    Raises:
        BundleError: it is no graph, or its weights are not in files of the bundle.
    """
    spec = bundle.manifest.graphs[name]
    file = bundle.file(spec.file)
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf's and onnx_ir's errors share no base
        raise BundleError(
            f"'{spec.file}' is not a graph that can be read ({one_line(error, limit=120)}): "
            "export the bundle again"
        ) from None
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_weight(bundle, spec.file, value.const_value)
    return OpenGraph(model, file.parent, spec)


def _check_weight(bundle: Bundle, file: str, tensor: ir.ExternalTensor) -> None:
    """Refuse a weight that lies outside the files that the manifest lists."""
    listed, offset = bundle.manifest.files.get(str(tensor.location)), tensor.offset or 0
    end = offset + (tensor.length or tensor.nbytes)
    if listed is None or offset < 0 or not tensor.nbytes <= end <= listed.size:
        raise BundleError(
            f"'{file}': weight '{one_line(tensor.name, limit=80)}' lies outside the bundle's "
            f"files ('{one_line(tensor.location, limit=80)}'): export the bundle again"
        )


def widen(model: ir.Model) -> None:
    """Make a graph that computes in 16 bits compute in float32.

    Needs weights as initializers. The stored weights stay, each is cast up where it is used (rows
    of a table after the look-up), so that a difference to another implementation is not rounding.
    """
    graph = model.graph
    for node in list(graph.all_nodes()):
        if node.op_type == "Cast" and node.attributes.get_int("to") in _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
        for attribute in list(node.attributes.values()):
            tensor = attribute.value if attribute.type == ir.AttributeType.TENSOR else None
            if tensor is not None and tensor.dtype in _NARROW:
                wide = ir.tensor(tensor.numpy().astype("float32"))
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
        for value in node.outputs:
            if value.dtype in _NARROW:
                value.dtype = ir.DataType.FLOAT
    for weight in list(graph.initializers.values()):
        if weight.dtype in _NARROW:
            _cast_up(graph, weight)


def _cast_up(graph: ir.Graph, weight: ir.Value) -> None:
    for use in list(weight.uses()):
        node = use.node
        if node.op_type == "Cast":
            continue
        looked_up = node.op_type == "Gather" and use.idx == 0
        source = node.outputs[0] if looked_up else weight
        cast = ir.node("Cast", [source], attributes={"to": ir.DataType.FLOAT})
        if looked_up:
            assert weight.dtype is not None
            source.dtype = weight.dtype
            ir.convenience.replace_all_uses_with(source, cast.outputs[0])
            cast.replace_input_with(0, source)
            graph.insert_after(node, cast)
        else:
            node.replace_input_with(use.idx, cast.outputs[0])
            graph.insert_before(node, cast)
