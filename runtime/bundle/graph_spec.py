"""The graphs of a manifest: which there must be, and what goes in and out of each."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from rism.runtime.bundle.json_reader import Node, is_integer
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.names import CAPTURES

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")

MODULATION = "modulation"
_TRANSFORMER_INPUTS = (
    "clean_latents",
    "noise",
    "prompt_embeds",
    "prompt_weights",
    "prompt_mask",
    "prompt_positions",
    "positions",
    "modulation",
)
# What this reader can feed, and what it must get back, by graph.
GRAPH_INPUTS: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("input_ids", "attention_mask", "quoted_mask", "position_ids", "image_embeds"),
    "vision_encoder": ("pixel_values", "patch_positions"),
    "modulation": ("prompt_embeds", "prompt_mask"),
    "vae_encoder": ("image",),
    "transformer.vectors": _TRANSFORMER_INPUTS,
    "transformer.matrices": _TRANSFORMER_INPUTS,
    "transformer.scores": (*_TRANSFORMER_INPUTS, "tau"),
}
GRAPH_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("prompt_embeds",),
    "vision_encoder": ("image_embeds",),
    "modulation": ("modulation",),
    "vae_encoder": ("clean_latents",),
    "transformer.vectors": ("attention_vectors", "propagated_vectors", "features"),
    "transformer.matrices": ("attention_vectors", "transition_matrices", "features"),
    "transformer.scores": ("scores", "coarse_attention", "refined_attention", "separability"),
}
# There is one of each, whatever sizes there are.
SIZELESS = ("text_encoder", "vision_encoder", "modulation")
# What can be fed only where the prompt's rules, or another graph, make it.
_FROM_VISION = ("position_ids", "image_embeds")
_FROM_POSITIONS = ("prompt_positions",)
_FROM_MODULATION = ("modulation",)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph: its name in the file, dtype, and sizes or dimension names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class PrecisionInfo:
    """The types that graphs compute in, and that most of their weights are stored as.

    `cpu` is what the forms for CPUs compute in, where that is not `compute`.
    """

    compute: str
    storage: str
    cpu: str | None = None

    def on(self, *, gpu: bool) -> str:
        """Return what the ONNX graphs compute in on a GPU, or on a CPU."""
        return self.compute if gpu or self.cpu is None else self.cpu


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its file, its tensors by logical name, and the file of its form for CPUs.

    `precision` is None where it is the bundle's.
    """

    file: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    cpu: str | None = None
    precision: PrecisionInfo | None = None


def parse_graphs(
    node: Node, sizes: tuple[tuple[int, int], ...], prompt: PromptRules, files: Container[str]
) -> dict[str, GraphSpec]:
    """Read the object "graphs" of a manifest; `sizes` are (width, height), none if graphs take any.

    Raises:
        BundleError: a graph is missing, or has tensors that a reader cannot feed or find.
    """
    suffixes = [size_suffix(size_wh) for size_wh in sizes] or [""]
    names = ["text_encoder"] if prompt.vision is None else ["text_encoder", "vision_encoder"]
    if node.has("modulation"):
        names.append("modulation")
    for suffix in suffixes:
        names.append(f"vae_encoder{suffix}")
        # What one size has, each must have.
        names += [
            f"transformer.{capture}{suffix}"
            for capture in CAPTURES
            if any(node.has(f"transformer.{capture}{other}") for other in suffixes)
        ]
    if not any(name.startswith("transformer.") for name in names):
        node.refuse(f"transformer.vectors{suffixes[0]}", "a graph for at least one capture mode")
    for name in GRAPH_INPUTS:
        if sizes and name not in SIZELESS and node.has(name):
            node.refuse(name, f"graphs by size, such as '{name}{suffixes[0]}', for 'sizes'")
    missing: tuple[str, ...] = () if prompt.vision is not None else _FROM_VISION
    missing += () if prompt.positions != "none" else _FROM_POSITIONS
    missing += () if node.has("modulation") else _FROM_MODULATION
    graphs = {name: _graph(node, name, missing, files) for name in names}
    _check_modulation(node, graphs)
    return graphs


def _check_modulation(node: Node, graphs: Mapping[str, GraphSpec]) -> None:
    """Refuse a transformer that takes another modulation than the graph of that name makes."""
    if "modulation" not in graphs:
        return
    made = graphs["modulation"].outputs["modulation"].shape
    for name, graph in graphs.items():
        if name.startswith("transformer."):
            taken = graph.inputs.get("modulation")
            if taken is None or not same_shape(made[1:], taken.shape[1:]) or len(made) != 2:
                inputs = node.node(name).node("inputs")
                inputs.refuse("modulation", f"what graph 'modulation' makes, {list(made)}")


def _graph(node: Node, name: str, missing: tuple[str, ...], files: Container[str]) -> GraphSpec:
    """Read one graph; inputs that are `missing` cannot be fed."""
    if not node.has(name):
        node.refuse(name, "a graph")
    entry, kind = node.node(name), name.partition("@")[0]
    graph = GraphSpec(
        file=entry.listed_file("file", files),
        inputs=_tensors(entry.node("inputs")),
        outputs=_tensors(entry.node("outputs")),
        cpu=entry.listed_file("cpu", files) if entry.has("cpu") else None,
        precision=parse_precision(entry.node("precision")) if entry.has("precision") else None,
    )
    fed = tuple(logical for logical in GRAPH_INPUTS[kind] if logical not in missing)
    for logical in graph.inputs:
        if logical not in fed:
            entry.node("inputs").refuse(logical, f"only {', '.join(fed)}")
    for logical in GRAPH_OUTPUTS[kind]:
        if logical not in graph.outputs:
            entry.node("outputs").refuse(logical, "a tensor")
    return graph


def parse_precision(node: Node) -> PrecisionInfo:
    """Read the object "precision" of a manifest or of one of its graphs."""
    cpu = node.text("cpu") if node.has("cpu") else None
    return PrecisionInfo(node.text("compute"), node.text("storage"), cpu)


def _tensors(node: Node) -> dict[str, TensorSpec]:
    tensors: dict[str, TensorSpec] = {}
    for logical in node.names():
        entry = node.node(logical)
        sizes = entry.items("shape", most=8)
        shape = tuple(s for s in sizes if is_integer(s, 1, 2**31) or (isinstance(s, str) and s))
        if len(shape) != len(sizes):
            entry.refuse("shape", "a list of sizes (1 or more) or dimension names")
        tensors[logical] = TensorSpec(entry.text("name"), entry.choice("dtype", DTYPES), shape)
    return tensors


def same_shape(expected: Sequence[int | str], actual: Sequence[object]) -> bool:
    """Tell whether two shapes can be one: a named dimension on either side may be any size."""
    return len(expected) == len(actual) and all(
        want == have or not isinstance(want, int) or not isinstance(have, int)
        for want, have in zip(expected, actual, strict=True)
    )


def size_suffix(size_wh: tuple[int, int]) -> str:
    """Return what the name of a graph of fixed size ends in: "@512x768"."""
    return f"@{size_wh[0]}x{size_wh[1]}"
