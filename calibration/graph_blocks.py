"""Splits a graph at its blocks into stages that run one after the other."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from rism.runtime.errors import BundleError, one_line

# A numbered part of the model, by the names of its weights: "dit.transformer_blocks.3".
_BLOCK = re.compile(r"[\w.]*?\.\d+(?=\.)")


@dataclass(frozen=True)
class Stage:
    """One piece of a graph.

    Attributes:
        model: a graph of its own, on the same stored weights.
        inputs: names of its inputs: the whole graph's, and outputs of earlier stages.
        outputs: names of its outputs: inputs of later stages, the whole graph's outputs, and
            tapped values.
        passed: those of the outputs that later stages take.
        done: names of the inputs that no later stage takes.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    passed: tuple[str, ...]
    done: tuple[str, ...]


def split_at_blocks(model: ir.Model, tapped: Collection[str] = ()) -> list[Stage]:
    """Split a graph before each of its numbered blocks.

    A node belongs to the block of its weight, or without a weight to the latest block that it
    depends on. Nodes that depend on no block come first; nodes that depend on weights alone run
    in the first stage that needs them.

    Args:
        model: its nodes in the order they run, without subgraphs.
        tapped: names of inner values that become outputs too.

    Raises:
        BundleError: a value between two stages has no known type.
    """
    graph = model.graph
    places = _places(graph)
    wanted = {value.name for value in graph.outputs} | set(tapped)
    last = _last_uses(graph, places)
    stages = []
    for place in range(max(places.values(), default=0) + 1):
        nodes = [node for node in graph if places[node] == place]
        if not nodes:
            continue
        made = {value for node in nodes for value in node.outputs}
        taken: dict[ir.Value, None] = {}
        constants: dict[ir.Value, None] = {}
        for node in nodes:
            for value in node.inputs:
                if value is not None and value not in made:
                    (constants if value.is_initializer() else taken)[value] = None
        given = [
            value
            for node in nodes
            for value in node.outputs
            if value.name in wanted or last.get(value, place) > place
        ]
        stages.append(
            Stage(
                _piece(model, nodes, [*taken], [*constants], given),
                tuple(_name(value) for value in taken),
                tuple(_name(value) for value in given),
                tuple(_name(value) for value in given if last.get(value, place) > place),
                tuple(_name(value) for value in taken if last[value] == place),
            )
        )
    return stages


def _places(graph: ir.Graph) -> dict[ir.Node, int]:
    blocks: dict[str, int] = {}
    places: dict[ir.Node, int] = {}
    # Values computed from weights alone, such as casts, and those weights. Their place in the
    # graph says nothing of the order of the blocks.
    made_of: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in graph:
        place, weights = 0, list[ir.Value]()
        taken = [value for value in node.inputs if value is not None]
        for value in taken:
            producer = value.producer()
            if producer in places:
                place = max(place, places[producer])
            elif value.is_initializer():
                weights.append(value)
            else:
                weights.extend(made_of.get(value, ()))
        if all(value.is_initializer() or value in made_of for value in taken):
            made_of.update((value, tuple(weights)) for value in node.outputs)
            continue
        for weight in weights:
            match = _BLOCK.match(weight.name or "")
            if match is not None:
                place = max(place, blocks.setdefault(match[0], len(blocks) + 1))
        places[node] = place
    for node in reversed(graph):
        if node not in places:
            users = [use.node for value in node.outputs for use in value.uses()]
            places[node] = min((places[user] for user in users if user in places), default=0)
    return places


def _last_uses(graph: ir.Graph, places: Mapping[ir.Node, int]) -> dict[ir.Value, int]:
    last: dict[ir.Value, int] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and not value.is_initializer():
                last[value] = max(last.get(value, 0), places[node])
    return last


def _piece(
    model: ir.Model,
    nodes: list[ir.Node],
    inputs: list[ir.Value],
    constants: list[ir.Value],
    outputs: list[ir.Value],
) -> ir.Model:
    """Copy nodes into a graph of their own; weights are shared, not copied."""
    own: dict[ir.Value, ir.Value] = {}
    for value in inputs:
        if value.dtype is None:
            raise BundleError(
                f"the type of '{one_line(value.name, limit=80)}' is missing in the graph: "
                "export the bundle again"
            )
        # Only the rank of the shape: the stages name their sizes differently.
        rank = None if value.shape is None else ir.Shape([None] * len(value.shape))
        own[value] = ir.Value(name=value.name, type=ir.TensorType(value.dtype), shape=rank)
    for value in constants:
        own[value] = ir.Value(
            name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
        )
    copies = []
    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else own[value] for value in node.inputs],
            [*node.attributes.values()],
            num_outputs=len(node.outputs),
            version=node.version,
            name=node.name,
        )
        for value, made in zip(node.outputs, copy.outputs, strict=True):
            made.name = value.name
            if value.dtype is not None:
                made.dtype = value.dtype
            own[value] = made
        copies.append(copy)
    graph = ir.Graph(
        [own[value] for value in inputs],
        [own[value] for value in outputs],
        nodes=copies,
        initializers=[own[value] for value in constants],
        opset_imports=dict(model.opset_imports),
        name="stage",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
