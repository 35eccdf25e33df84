"""The layers of an engine, read from the log of its build, and checks of them.

A builder with detailed profiling prints every layer of the engine with its tensors. An inspector
would list them too, but only of a loaded engine, and no engine loads without a GPU. Which kernels a
GPU takes, how fast they are and whether their numbers are right is not in the list: `rism doctor`
tests that where the engine runs.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rism.runtime.bundle.engine_spec import ShapeRange

# A log has hundreds of thousands of lines; a layer is in one with these words.
_LISTED = ", LayerType: "
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), TacticName: (?P<tactic>[^,]*)"
)
_TENSOR = re.compile(
    r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)"
)
# Names of fused attention kernels: _gemm_mha_v2 in TensorRT for RTX 1.7, that and _gemv_mha_v1 in
# TensorRT 10, fused_mha_v2 and fmha in those before. No maker guarantees a name, and layers carry
# names of the graph's nodes too: "mha" alone, or "attention", may come from a node.
_FUSED_ATTENTION = re.compile(r"(gemm|gemv|fused|flash)_mha|fmha|mha_v\d|flash_attn", re.IGNORECASE)
# A softmax outside of such a kernel: by the node's name, or by the operations that were fused.
_SOFTMAX = re.compile(r"softmax|Max\w*SubExp", re.IGNORECASE)
# Matrix products, products fused with what follows them, and convolutions.
_PRODUCTS = ("gemm", "runtime_fusion", "correlation")
_TYPES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "fp8": "FP8", "nvfp4": "FP4E2M1"}
_NARROW = {"Int4": "4 bits", "Int8": "8 bits", "FP4E2M1": "NVFP4"}
FUSED = "attention fused"
_SQUARE = "no N_v x N tensor"
_MOST_NAMED = 5


@dataclass(frozen=True)
class EngineTensor:
    """A tensor of a layer; -1 in `dims` is a size that is free."""

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the engine, mostly one kernel."""

    name: str
    type: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str = ""

    @property
    def is_fused_attention(self) -> bool:
        """Whether its name or tactic is that of a fused attention kernel."""
        return _FUSED_ATTENTION.search(f"{self.name} {self.tactic}") is not None

    @property
    def is_softmax(self) -> bool:
        """Whether its name or type is that of a softmax outside of fused attention."""
        named = _SOFTMAX.search(f"{self.name} {self.type}") is not None
        return named and not self.is_fused_attention

    @property
    def is_opaque(self) -> bool:
        """Whether it stands for several layers that are not listed."""
        return "ForeignNode" in self.name or self.type.lower() == "myelin"


@dataclass(frozen=True)
class LayerCheck:
    """One question about the layers of an engine, and its answer.

    Attributes:
        question: what the engine should have, such as "attention fused".
        answer: "yes", "no", "unknown", or "not in this form" where the graph's form rules it out.
        detail: what was counted.
    """

    question: str
    answer: str
    detail: str


def parse_layer(line: str) -> EngineLayer | None:
    """Read a layer from a line of a builder's log; None where the line lists none."""
    match = _LAYER.search(line) if _LISTED in line else None
    if match is None:
        return None
    return EngineLayer(
        match["name"],
        match["type"],
        _tensors(match["inputs"]),
        _tensors(match["constants"] or ""),
        _tensors(match["outputs"]),
        match["tactic"],
    )


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(
            match["name"],
            tuple(int(size) for size in match["dims"].split(",") if size),
            match["dtype"],
        )
        for match in _TENSOR.finditer(text)
    )


def check_layers(
    layers: Sequence[EngineLayer],
    *,
    precision: str,
    attentions: int,
    quantised: int,
    written_out: int,
    tokens: ShapeRange | None,
    narrow: Mapping[str, int] | None = None,
) -> list[LayerCheck]:
    """Check whether the layers of an engine are what was asked for.

    Args:
        layers: of the engine; empty where the library printed none.
        precision: of the products, see `BuildJob`.
        attentions: how many attentions the graph leaves to fused kernels.
        quantised: how many products the graph quantises to FP8 or NVFP4.
        written_out: how many attentions are written out, since the library has no kernel for them.
        tokens: for a transformer whose capture mode needs no matrices of tokens by tokens, the
            shapes of the clean latents (batch, N_v, channels); otherwise None.
        narrow: how many weights are of few bits, by their types in the listing.
    """
    if not layers:
        why = "the library listed no layers"
        return [LayerCheck(name, "unknown", why) for name in (FUSED, "precision used")]
    square = None if tokens is None or written_out else _no_square(layers, tokens)
    checks = [
        _fused(layers, attentions, written_out, square),
        _precision(layers, precision, quantised),
    ]
    if tokens is not None and written_out:
        why = f"{written_out} attentions are written out: {precision} has no fused kernel for them"
        checks.append(LayerCheck(_SQUARE, "not in this form", why))
    elif square is not None:
        checks.append(square)
    return checks + [_narrow(layers, dtype, count) for dtype, count in (narrow or {}).items()]


def unacceptable(graph: str, checks: Sequence[LayerCheck]) -> list[LayerCheck]:
    """Return the checks for which an engine is refused.

    Attention that is not fused costs gigabytes in a transformer. In an encoder it is allowed:
    TensorRT for RTX does that with small fixed sizes, which are hardly slower for it.

    Args:
        graph: its name in the manifest.
        checks: as `check_layers` returns them.
    """
    matters = [c for c in checks if graph.startswith("transformer.") or c.question != FUSED]
    return [check for check in matters if check.answer == "no"]


def _fused(
    layers: Sequence[EngineLayer], attentions: int, written_out: int, square: LayerCheck | None
) -> LayerCheck:
    """Check for fused attention by kernel names, or else by what passes between layers.

    Args:
        layers: of the engine.
        attentions: how many are left to the library.
        written_out: how many are not, and therefore have a softmax of their own.
        square: whether tensors of tokens by tokens pass between layers; None where that says
            nothing.
    """
    if not attentions:
        why = f"written out: {written_out}" if written_out else "the graph has none"
        return LayerCheck(FUSED, "not in this form", why)
    fused = sum(layer.is_fused_attention for layer in layers)
    detail = f"{fused} fused kernels for {attentions} attentions"
    if fused >= attentions:
        return LayerCheck(FUSED, "yes", detail)
    alone = sum(layer.is_softmax for layer in layers)
    if square is not None and square.answer == "no":
        return LayerCheck(FUSED, "no", f"{detail}, and {square.detail} between layers")
    if alone and not written_out:
        return LayerCheck(FUSED, "no", f"{detail}, and {alone} layers of softmax alone")
    if square is not None and square.answer == "yes":
        return LayerCheck(FUSED, "yes", f"{detail} by name; nothing of N x N passes between layers")
    return LayerCheck(FUSED, "unknown", f"{detail} by name, which no maker guarantees")


def _precision(layers: Sequence[EngineLayer], precision: str, quantised: int) -> LayerCheck:
    """Check that matrix products read the type that was asked for."""
    products = [layer for layer in layers if layer.type in _PRODUCTS]
    if not products:
        return LayerCheck("precision used", "unknown", "no products are listed")
    # Weights are constants or, where they are bound, inputs.
    read = [{tensor.dtype for tensor in (*each.inputs, *each.constants)} for each in products]
    wanted = _TYPES[precision]
    counts = Counter(wanted if wanted in types else "+".join(sorted(types)) for types in read)
    detail = ", ".join(f"{count} products in {name}" for name, count in counts.most_common())
    if precision not in ("fp8", "nvfp4"):
        return LayerCheck("precision used", "yes" if counts[wanted] else "no", detail)
    # Products of one input are merged into one layer, whose name joins theirs with +.
    merged = sum(
        1 + layer.name.count("+")
        for layer, types in zip(products, read, strict=True)
        if wanted in types
    )
    answer = "yes" if merged >= quantised > 0 else "no"
    return LayerCheck("precision used", answer, f"{detail}; the graph quantises {quantised}")


def _narrow(layers: Sequence[EngineLayer], dtype: str, count: int) -> LayerCheck:
    """Check that weights in few bits are so in the engine."""
    constants = {tensor for layer in layers for tensor in layer.constants}
    found = sum(math.prod(each.dims) for each in constants if each.dtype == dtype)
    detail = f"{found} numbers of {count}"
    return LayerCheck(f"weights in {_NARROW[dtype]}", "yes" if found >= count else "no", detail)


def _no_square(layers: Sequence[EngineLayer], tokens: ShapeRange) -> LayerCheck:
    """Check that no tensor between layers holds N_v x N values for each head."""
    produced = [tensor for layer in layers for tensor in layer.outputs]
    low, high = tokens.min[1], tokens.max[1]
    if low != high:
        # Batch, prompt and tokens are free sizes (-1): two of them at the end are tokens by tokens,
        # unless all heads share it: that is the mask of a prompt's tokens.
        square = [
            t
            for t in produced
            if len(t.dims) > 2 and t.dims[-1] == t.dims[-2] == -1 and t.dims[1:-2] != (1,)
        ]
        unknown: list[EngineTensor] = []
    else:
        square, unknown = _large_sides(produced, high)
    if square:
        return LayerCheck(_SQUARE, "no", _named(square))
    if unknown:
        return LayerCheck(_SQUARE, "unknown", f"{_named(unknown)}: may be tokens by channels")
    hidden = sum(layer.is_opaque for layer in layers)
    if hidden:
        return LayerCheck(_SQUARE, "unknown", f"the layers of {hidden} regions are not listed")
    return LayerCheck(_SQUARE, "yes", f"{len(produced)} tensors were checked")


def _large_sides(
    produced: Sequence[EngineTensor], count: int
) -> tuple[list[EngineTensor], list[EngineTensor]]:
    """Find tensors in a graph of fixed size that are, or may be, tokens by tokens.

    A whole sequence has more than twice N_v tokens. Two last sides of at least N_v after a side of
    heads are an attention matrix; without heads they may be tokens by channels.
    """
    square: list[EngineTensor] = []
    unknown: list[EngineTensor] = []
    for tensor in produced:
        sides = [size for size in tensor.dims if size != 1]
        if len(sides) < 2 or min(sides[-2:]) < count:
            continue
        (square if len(sides) > 2 else unknown).append(tensor)
    # Most activations are tokens by channels: what is left has two sides as long as tokens.
    lengths = {count, 2 * count}
    unknown = [
        tensor
        for tensor in unknown
        if all(size in lengths or size > 2 * count for size in tensor.dims if size != 1)
        and tensor.dims[-1] in lengths
    ]
    return square, unknown


def _named(tensors: Sequence[EngineTensor]) -> str:
    shapes = Counter(f"{list(tensor.dims)} {tensor.dtype}" for tensor in tensors)
    some = [f"{count} of {shape}" for shape, count in shapes.most_common(_MOST_NAMED)]
    return ", ".join(some)
