"""What a manifest says about engines: built variants, stored test vectors, FP8 scales.

All three are optional: a bundle's ONNX graphs run without them. A target or a precision that this
version does not know is kept as text, and its engine is never chosen.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rism.runtime.bundle.file_spec import FileInfo
from rism.runtime.bundle.graph_spec import DTYPES, GraphSpec, TensorSpec, same_shape
from rism.runtime.bundle.json_reader import Node
from rism.runtime.errors import one_line
from rism.runtime.names import COMPUTE_TYPES

MAX_VARIANTS = 64
MAX_CAPABILITIES = 64
MAX_SELF_TEST_BYTES = 2**32
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", re.ASCII)
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){1,4}[A-Za-z0-9.+-]{0,20}", re.ASCII)
_CAPABILITY = re.compile(r"\d{1,3}\.\d", re.ASCII)


@dataclass(frozen=True)
class ShapeRange:
    """Shapes that one input of a plan takes: elementwise from `min` to `max`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape is inside."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class PlanSpec:
    """One graph of a variant.

    Attributes:
        file: the plan, byte for byte as the library built it.
        layers: the build's layer listing (JSON), or None.
        refit: for a stripped plan, the ONNX file to refit it from, whose initialisers lie in the
            bundle's own weights; otherwise None.
        shapes: the optimisation profile, by logical input name; inputs of one shape may lack.
        weights: for a plan that takes its weights as inputs, the JSON file that says where in the
            bundle they lie; otherwise None.
    """

    file: str
    layers: str | None
    refit: str | None
    shapes: Mapping[str, ShapeRange]
    weights: str | None = None


@dataclass(frozen=True)
class EngineVariant:
    """Plans that one library built for one kind of machine, in one precision.

    Attributes:
        name: the folder under engines/.
        target: "tensorrt-rtx" or "tensorrt"; engines for others are never chosen.
        version: of the library that built it, such as "1.7.1.116".
        platform: such as "linux-x86_64".
        compute_capabilities: GPUs that it runs on, such as ("8.6", "8.9").
        precision: one of `rism.runtime.names.ENGINE_PRECISIONS`.
        stripped: whether the plans lack their weights.
        graphs: plans by name of the manifest's graph.
        streamed: whether weights may stay in host memory and be read from there in each run.
    """

    name: str
    target: str
    version: str
    platform: str
    compute_capabilities: tuple[str, ...]
    precision: str
    stripped: bool
    graphs: Mapping[str, PlanSpec]
    streamed: bool = False

    @property
    def compute(self) -> str:
        """Its precision as results call it: "float16" for "fp16", but "fp8" for "fp8"."""
        return COMPUTE_TYPES.get(self.precision, self.precision)

    @property
    def bound(self) -> bool:
        """Whether a plan takes its weights as inputs."""
        return any(plan.weights is not None for plan in self.graphs.values())


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor in the file of test vectors: little-endian, row-major, at a byte offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class RecordedGraph:
    """Stored inputs and outputs of one graph, by logical name."""

    inputs: Mapping[str, RecordedTensor]
    outputs: Mapping[str, RecordedTensor]


@dataclass(frozen=True)
class SelfTest:
    """Test vectors: their file, the engine that computed them, and the tensors of each graph."""

    file: str
    made_by: str
    graphs: Mapping[str, RecordedGraph]


def parse_engines(
    top: Node, graphs: Mapping[str, GraphSpec], files: Mapping[str, FileInfo]
) -> tuple[EngineVariant, ...]:
    """Read the list "engines" of a manifest; plans of graphs that are not in `graphs` are ignored.

    Raises:
        BundleError: a key is wrong, a file is not listed, or a plan is of no graph.
    """
    if not top.has("engines"):
        return ()
    variants: dict[str, EngineVariant] = {}
    for at, entry in enumerate(top.items("engines", most=MAX_VARIANTS)):
        node = Node(entry, f"engines[{at}]")
        variant = _variant(node, top.node("graphs"), graphs, files)
        if variant.name in variants:
            node.refuse("name", "a name that no other engine has")
        variants[variant.name] = variant
    return tuple(variants.values())


def _variant(
    node: Node, known: Node, graphs: Mapping[str, GraphSpec], files: Mapping[str, FileInfo]
) -> EngineVariant:
    name = node.matching("name", _NAME, "a name of a-z, 0-9, . + - (at most 64)")
    stripped = node.boolean("stripped", default=False)
    plans: dict[str, PlanSpec] = {}
    entries = node.node("graphs")
    for graph in entries.names():
        if graph in graphs:
            plans[graph] = _plan(entries.node(graph), graphs[graph], files, stripped=stripped)
        elif not known.has(graph):
            entries.refuse(graph, "a plan of a graph that the manifest has")
    if not plans:
        node.refuse("graphs", "a plan of at least one graph")
    return EngineVariant(
        name=name,
        target=node.matching("target", _WORD, "a library, such as 'tensorrt-rtx'"),
        version=node.matching("version", _VERSION, "a version, such as '1.7.1.116'"),
        platform=node.matching("platform", _WORD, "a platform, such as 'linux-x86_64'"),
        compute_capabilities=_capabilities(node),
        precision=node.matching("precision", _WORD, "a precision, such as 'fp16'"),
        stripped=stripped,
        graphs=plans,
        streamed=node.boolean("streamed", default=False),
    )


def _plan(
    node: Node, graph: GraphSpec, files: Mapping[str, FileInfo], *, stripped: bool
) -> PlanSpec:
    plan = PlanSpec(
        file=node.listed_file("file", files),
        layers=node.listed_file("layers", files) if node.has("layers") else None,
        refit=node.listed_file("refit", files) if stripped else None,
        shapes={
            logical: _range(node.node_or_empty("shapes"), logical, graph)
            for logical in node.node_or_empty("shapes").names()
        },
        weights=node.listed_file("weights", files) if node.has("weights") else None,
    )
    for logical, tensor in graph.inputs.items():
        if logical not in plan.shapes and not all(isinstance(size, int) for size in tensor.shape):
            node.node_or_empty("shapes").refuse(logical, "the shapes of an input of no fixed shape")
    return plan


def _range(shapes: Node, logical: str, graph: GraphSpec) -> ShapeRange:
    if logical not in graph.inputs:
        shapes.refuse(logical, f"only inputs of the graph ({', '.join(graph.inputs)})")
    node, declared = shapes.node(logical), graph.inputs[logical].shape
    found = ShapeRange(*(node.sizes(key) for key in ("min", "opt", "max")))
    for key, shape in (("min", found.min), ("opt", found.opt), ("max", found.max)):
        if not same_shape(declared, shape):
            node.refuse(key, f"a shape of the graph's input, {one_line(list(declared))}")
    if not (found.holds(found.opt) and found.holds(found.min)):
        node.refuse("opt", "sizes from those of 'min' to those of 'max'")
    return found


def parse_self_test(
    top: Node, graphs: Mapping[str, GraphSpec], files: Mapping[str, FileInfo]
) -> SelfTest | None:
    """Read "self_test" of a manifest; vectors of graphs that are not in `graphs` are ignored.

    Raises:
        BundleError: a key is wrong, or a tensor is not the graph's or not inside its file.
    """
    if not top.has("self_test"):
        return None
    node = top.node("self_test")
    file = node.listed_file("file", files)
    size = files[file].size
    if size > MAX_SELF_TEST_BYTES:
        node.refuse("file", f"a file of at most {MAX_SELF_TEST_BYTES} bytes")
    stored: dict[str, RecordedGraph] = {}
    for name in node.node("graphs").names():
        if name not in graphs:
            continue
        entry = node.node("graphs").node(name)
        stored[name] = RecordedGraph(
            inputs=_stored(entry.node("inputs"), graphs[name].inputs, size),
            outputs=_stored(entry.node("outputs"), graphs[name].outputs, size),
        )
        for logical in graphs[name].inputs:
            if logical not in stored[name].inputs:
                entry.node("inputs").refuse(logical, "every input of the graph")
        if not stored[name].outputs:
            entry.refuse("outputs", "at least one output of the graph")
    return SelfTest(file, node.text("made_by"), stored)


def _stored(node: Node, declared: Mapping[str, TensorSpec], size: int) -> dict[str, RecordedTensor]:
    tensors: dict[str, RecordedTensor] = {}
    for logical in node.names():
        if logical not in declared:
            node.refuse(logical, f"only tensors of the graph ({', '.join(declared)})")
        entry, spec = node.node(logical), declared[logical]
        tensor = RecordedTensor(
            entry.choice("dtype", DTYPES), entry.sizes("shape"), entry.integer("offset", 0, size)
        )
        if tensor.dtype != spec.dtype:
            entry.refuse("dtype", f"the graph's, '{spec.dtype}'")
        if not same_shape(spec.shape, tensor.shape):
            entry.refuse("shape", f"a shape of the graph's tensor, {one_line(list(spec.shape))}")
        if tensor.offset + tensor.nbytes > size:
            entry.refuse("offset", f"{tensor.nbytes} bytes inside a file of {size}")
        tensors[logical] = tensor
    return tensors


def _capabilities(node: Node) -> tuple[str, ...]:
    found = node.items("compute_capabilities", most=MAX_CAPABILITIES)
    texts = [c for c in found if isinstance(c, str) and _CAPABILITY.fullmatch(c)]
    if not texts or len(texts) != len(found):
        node.refuse("compute_capabilities", "a list of compute capabilities, such as ['8.6']")
    return tuple(texts)
