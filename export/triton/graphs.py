"""The two graphs that Triton needs besides a bundle's own, as edits and as a graph of its own.

A bundle's transformer has noise (1, N_v, C), positions (N_v, 2) and tau (1,) once for a whole
batch. A server joins requests into a batch by their first dimension, and only requests of equal
shapes. So what is shared must follow from a shape: the grid of the image's tokens stands in
the shape of its latents, (B, N_h, N_w, C), and noise, positions and tau are made inside.
"""

import numpy as np
import onnx_ir as ir

from rism.export.graph.nodes import Nodes
from rism.export.triton.models import FREE, Model, Tensor, joined
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.errors import BundleError, one_line

_OPSET = 20
_IR_VERSION = 10
_LEAST_OPSET = 15


class NoiseFile:
    """The bundle's noise as an initializer whose values stay in a file beside the graph."""

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.name, self.shape = name, shape

    def value(self) -> ir.Value:
        """Return it, (rows, C) float32."""
        tensor = ir.ExternalTensor(
            self.name,
            0,
            4 * self.shape[0] * self.shape[1],
            ir.DataType.FLOAT,
            shape=ir.Shape(self.shape),
            name="rism.noise",
        )
        value = ir.val(tensor.name, ir.DataType.FLOAT, self.shape)
        value.const_value = tensor
        return value


def _shared(
    nodes: Nodes, rows: ir.Value, columns: ir.Value, noise: ir.Value, given: dict[str, str]
) -> dict[str, ir.Value]:
    """Make what a batch has once.

    Args:
        nodes: receives what is made.
        rows: of the grid, (1,) int64.
        columns: likewise.
        noise: (rows, C) float32.
        given: types of "noise" and "positions".

    Returns:
        "noise" (1, N_v, C), its first rows; "positions" (N_v, 2), row and column.
    """
    zero, one = nodes.constant([0]), nodes.constant([1])
    tokens = nodes.add("Mul", [rows, columns])
    first = nodes.add("Slice", [noise, zero, tokens, zero])
    index = nodes.add(
        "Range", [nodes.constant(0), nodes.add("Squeeze", [tokens]), nodes.constant(1)]
    )
    places = [nodes.add("Div", [index, columns]), nodes.add("Mod", [index, columns])]
    pairs = nodes.add(
        "Concat", [*(nodes.add("Unsqueeze", [place, one]) for place in places)], axis=1
    )
    return {
        "noise": nodes.cast(
            nodes.add("Unsqueeze", [first, zero]), ir.DataType.FLOAT, _dtype(given["noise"])
        ),
        "positions": nodes.cast(pairs, ir.DataType.INT64, _dtype(given["positions"])),
    }


def join_requests(
    model: ir.Model, spec: GraphSpec, wanted: Model, *, noise: NoiseFile, tau: float
) -> None:
    """Let a transformer take rows of several requests.

    Needs: a graph with the tensors of its manifest's entry, its batch free. Leaves: the same
    computation, with latents by row and column of the grid in the place of `clean_latents`, and
    without the inputs `noise`, `positions` and `tau`.

    Args:
        model: the graph, changed in place.
        spec: its tensors, by the manifest.
        wanted: what it is to be.
        noise: beside the file that will be written.
        tau: region threshold.

    Raises:
        BundleError: the graph is not as the manifest says.
    """
    graph, given = model.graph, {value.name: value for value in model.graph.inputs}
    version = graph.opset_imports.get("", 0)
    missing = [t.name for t in spec.inputs.values() if t.name not in given]
    if version < _LEAST_OPSET or missing:
        found = f"no input '{one_line(missing[0], limit=60)}'" if missing else f"opset {version}"
        raise BundleError(
            f"'{one_line(spec.file, limit=80)}' has {found}, expected the manifest's inputs and "
            f"opset {_LEAST_OPSET} or later: export the bundle again"
        )
    nodes = Nodes("rism")
    old = {logical: given[tensor.name] for logical, tensor in spec.inputs.items()}
    grid = _value(wanted.inputs["clean_latents"], "batch", "rows", "columns", "channels")
    zero, channels = nodes.constant([0]), spec.inputs["clean_latents"].shape[2]
    last = nodes.constant([channels]) if isinstance(channels, int) else _side(nodes, grid, 3)
    flat = nodes.add(
        "Reshape", [grid, nodes.add("Concat", [zero, nodes.constant([-1]), last], axis=0)]
    )
    types = {name: spec.inputs[name].dtype for name in ("noise", "positions")}
    all_noise = noise.value()
    made = _shared(nodes, _side(nodes, grid, 1), _side(nodes, grid, 2), all_noise, types)
    made["clean_latents"] = flat
    if "tau" in old:
        made["tau"] = nodes.constant([tau], _dtype(spec.inputs["tau"].dtype))
    for logical, value in made.items():
        value.type, value.shape = old[logical].type, old[logical].shape
        old[logical].replace_all_uses_with(value)
    kept = [value for value in graph.inputs if value not in [old[name] for name in made]]
    graph.inputs.clear()
    graph.inputs.extend([grid, *kept])
    graph.register_initializer(all_noise)
    graph.insert_before(graph[0], nodes.nodes)


def transformer_inputs(
    joint: Model, *, token_px: int, grid: bool, noise: NoiseFile, tau: float
) -> ir.Model:
    """Make the graph that brings one image and several prompts to the transformer's inputs.

    `image` is read for its shape only, as are prompt weights. Latents, (1, N_v, C), are repeated
    for each prompt, and embeddings filled up with zeros to the prompt mask's length where there
    is one.

    Args:
        joint: the inputs and outputs to have.
        token_px: side of a token, pixels.
        grid: latents by row and column, (B, N_h, N_w, C); otherwise (B, N_v, C).
        noise: beside the file that will be written.
        tau: region threshold.
    """
    nodes = Nodes("rism")
    given = {name: _value(t, *_names(name)) for name, t in joint.inputs.items()}
    want = {name: tensor.dtype for name, tensor in joint.outputs.items()}
    one, size = nodes.constant([1]), nodes.constant([token_px])
    rows, columns = (
        nodes.add("Div", [_side(nodes, given["image"], axis), size]) for axis in (2, 3)
    )
    latents = given["clean_latents"]
    counted = "prompt_embeds" if "prompt_embeds" in given else "prompt_weights"
    batch = _side(nodes, given[counted], 0)
    shape = [batch, one, one]
    if grid:
        by_row = nodes.add("Concat", [one, rows, columns, _side(nodes, latents, 2)], axis=0)
        latents, shape = nodes.add("Reshape", [latents, by_row]), [*shape, one]
    latents = nodes.add("Expand", [latents, nodes.add("Concat", [*shape], axis=0)])
    made = {
        "clean_latents": nodes.cast(
            latents, _dtype(joint.inputs["clean_latents"].dtype), _dtype(want["clean_latents"])
        )
    }
    initializers = []
    if "noise" in want:
        initializers.append(noise.value())
        made |= _shared(nodes, rows, columns, initializers[0], want)
    if "tau" in want:
        made["tau"] = nodes.add("Identity", [nodes.constant([tau], _dtype(want["tau"]))])
    if "prompt_embeds" in want:
        embeds = given["prompt_embeds"]
        if "prompt_mask" in given:
            embeds = _filled_up(nodes, embeds, given["prompt_mask"], joint.inputs["prompt_embeds"])
        have = joint.inputs["prompt_embeds"].dtype
        made["prompt_embeds"] = nodes.cast(embeds, _dtype(have), _dtype(want["prompt_embeds"]))
    for name, value in made.items():
        tensor = joint.outputs[name]
        value.name, value.type = joined(name), ir.TensorType(_dtype(tensor.dtype))
        sides = [n if n != FREE else f"{name}_{i}" for i, n in enumerate(tensor.shape)]
        value.shape = ir.Shape(sides)
    graph = ir.Graph(
        list(given.values()),
        [made[name] for name in joint.outputs],
        nodes=nodes.nodes,
        initializers=initializers,
        opset_imports={"": _OPSET},
        name="transformer_inputs",
    )
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="rism")


def _filled_up(nodes: Nodes, embeds: ir.Value, mask: ir.Value, spec: Tensor) -> ir.Value:
    """Make embeddings (B, S, E) as long as the mask (B, N_p), and zero where it is."""
    surplus = nodes.add("Sub", [_side(nodes, mask, 1), _side(nodes, embeds, 1)])
    pads = nodes.add("Concat", [nodes.constant([0, 0, 0, 0]), surplus, nodes.constant([0])], axis=0)
    there = nodes.add(
        "Unsqueeze", [nodes.add("Cast", [mask], to=ir.DataType.BOOL.value), nodes.constant([2])]
    )
    return nodes.add(
        "Where", [there, nodes.add("Pad", [embeds, pads]), nodes.constant(0, _dtype(spec.dtype))]
    )


def _side(nodes: Nodes, value: ir.Value, axis: int) -> ir.Value:
    """Return one dimension of a shape, (1,) int64."""
    return nodes.add("Shape", [value], start=axis, end=axis + 1)


def _value(tensor: Tensor, *names: str) -> ir.Value:
    shape = [name if n == FREE else n for n, name in zip(tensor.shape, names, strict=True)]
    return ir.val(tensor.name, _dtype(tensor.dtype), shape)


def _names(logical: str) -> tuple[str, ...]:
    return {
        "image": ("one", "colours", "height", "width"),
        "clean_latents": ("one", "tokens", "channels"),
        "prompt_embeds": ("batch", "kept_tokens", "features"),
        "prompt_mask": ("batch", "prompt_tokens"),
        "prompt_weights": ("batch", "prompt_tokens"),
    }[logical]


def _dtype(name: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(name))
