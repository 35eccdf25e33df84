"""The layers that a library made of a graph, as it lists them while it builds, and what they say.

With detailed profiling the builder prints every layer of the engine with its tensors; without a
GPU it is all there is to know. What it cannot say (which kernel a GPU takes, how fast it is,
whether its numbers are right) is not assumed: `rism doctor` measures it where the engine runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rism.runtime.bundle.engine_spec import ShapeRange

__all__ = [
    "FUSED",
    "Check",
    "Layer",
    "Tensor",
    "check_layers",
    "parse_layers",
    "unacceptable",
]

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), TacticName: (?P<tactic>[^,]*)"
)
_TENSOR = re.compile(
    r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)"
)
# What kernels of fused attention are called: _gemm_mha_v2 by TensorRT for RTX 1.7, that and
# _gemv_mha_v1 by TensorRT 10, fused_mha_v2 and fmha by those before. No maker promises a name, and
# layers carry names of the graph's nodes, too: "mha" alone, or "attention", may be one of these.
_FUSED_ATTENTION = re.compile(r"(gemm|gemv|fused|flash)_mha|fmha|mha_v\d|flash_attn", re.IGNORECASE)
# A softmax that is no part of one: by the node's name, or by the operations that were fused.
_SOFTMAX = re.compile(r"softmax|Max\w*SubExp", re.IGNORECASE)
# Products alone, fused with what follows them, and convolutions.
_PRODUCTS = ("gemm", "runtime_fusion", "correlation")
_TYPES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "fp8": "FP8"}
FUSED = "attention fused"
_SQUARE = "no N_v x N tensor"
_MOST_NAMED = 5


@dataclass(frozen=True)
class Tensor:
    """A tensor of a layer; -1 in `dims` is a size that is free."""

    name: str
    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: a kernel, mostly."""

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str = ""

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is named as scores, softmax and product with the values in one."""
        return _FUSED_ATTENTION.search(f"{self.name} {self.tactic}") is not None

    @property
    def is_softmax(self) -> bool:
        """Whether it is named as a softmax between other layers."""
        named = _SOFTMAX.search(f"{self.name} {self.type}") is not None
        return named and not self.is_fused_attention

    @property
    def is_opaque(self) -> bool:
        """Whether it is a region of layers that are not listed."""
        return "ForeignNode" in self.name or self.type.lower() == "myelin"


@dataclass(frozen=True)
class Check:
    """One question to the listing: its answer, and why.

    Attributes:
        question: what an engine should be.
        answer: "yes", "no", "unknown", or "not in this form" where the graph's own form rules
            it out.
        detail: what was counted.
    """

    question: str
    answer: str
    detail: str

    def as_json(self) -> dict[str, str]:
        """As it is stored."""
        return asdict(self)


def parse_layers(lines: Iterable[str]) -> list[Layer]:
    """Read the layers out of a builder's log."""
    found = []
    for line in lines:
        match = _LAYER.search(line)
        if match is not None:
            found.append(
                Layer(
                    match["name"],
                    match["type"],
                    _tensors(match["inputs"]),
                    _tensors(match["constants"] or ""),
                    _tensors(match["outputs"]),
                    match["tactic"],
                )
            )
    return found


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            match["name"],
            tuple(int(size) for size in match["dims"].split(",") if size),
            match["dtype"],
        )
        for match in _TENSOR.finditer(text)
    )


def check_layers(
    layers: Sequence[Layer],
    *,
    precision: str,
    attentions: int,
    quantised: int,
    written_out: int,
    tokens: ShapeRange | None,
) -> list[Check]:
    """Ask a listing whether the engine is what was asked for.

    Args:
        layers: of the engine; none where the library printed none.
        precision: "fp32", "fp16", "bf16" or "fp8".
        attentions: how many the graph leaves to fused kernels.
        quantised: products that the graph quantises to FP8.
        written_out: how many it does not, because the library has no kernel for them.
        tokens: of a transformer whose capture mode promises no matrices of tokens by tokens,
            shapes of the clean latents (batch, N_v, channels); otherwise None.
    """
    if not layers:
        why = "the library listed no layers"
        return [Check(name, "unknown", why) for name in (FUSED, "precision used")]
    square = None if tokens is None or written_out else _no_square(layers, tokens)
    checks = [
        _fused(layers, attentions, written_out, square),
        _precision(layers, precision, quantised),
    ]
    if tokens is not None and written_out:
        why = f"{written_out} attentions are written out: {precision} has no fused kernel for them"
        checks.append(Check(_SQUARE, "not in this form", why))
    elif square is not None:
        checks.append(square)
    return checks


def unacceptable(graph: str, checks: Sequence[Check]) -> list[Check]:
    """Return the answers for which an engine is refused.

    An encoder whose attention the library rather writes out, as TensorRT for RTX does with small
    fixed sizes, is right, and hardly slower; in a transformer it is gigabytes.

    Args:
        graph: as in a manifest.
        checks: as `check_layers` gives them.
    """
    matters = [c for c in checks if graph.startswith("transformer.") or c.question != FUSED]
    return [check for check in matters if check.answer == "no"]


def _fused(
    layers: Sequence[Layer], attentions: int, written_out: int, square: Check | None
) -> Check:
    """Whether attentions are fused: by names of kernels, else by what passes between layers.

    Args:
        layers: of the engine.
        attentions: how many are left to the library.
        written_out: how many are not, and are a softmax between products by nature.
        square: whether anything of tokens by tokens passes between layers, where that tells.
    """
    if not attentions:
        why = f"written out: {written_out}" if written_out else "the graph has none"
        return Check(FUSED, "not in this form", why)
    fused = sum(layer.is_fused_attention for layer in layers)
    detail = f"{fused} fused kernels for {attentions} attentions"
    if fused >= attentions:
        return Check(FUSED, "yes", detail)
    alone = sum(layer.is_softmax for layer in layers)
    if square is not None and square.answer == "no":
        return Check(FUSED, "no", f"{detail}, and {square.detail} between layers")
    if alone and not written_out:
        return Check(FUSED, "no", f"{detail}, and {alone} layers of softmax alone")
    if square is not None and square.answer == "yes":
        return Check(FUSED, "yes", f"{detail} by name; nothing of N x N passes between layers")
    return Check(FUSED, "unknown", f"{detail} by name, which nobody promises")


def _precision(layers: Sequence[Layer], precision: str, quantised: int) -> Check:
    """Whether matrix products read the type that was asked for."""
    wanted = _TYPES[precision]
    products = [layer for layer in layers if layer.type in _PRODUCTS]
    read: Counter[str] = Counter()
    for layer in products:
        # Weights are constants or, where they are bound, inputs: both count.
        types = {tensor.dtype for tensor in (*layer.inputs, *layer.constants)}
        read[wanted if wanted in types else "+".join(sorted(types))] += 1
    detail = ", ".join(f"{count} products in {name}" for name, count in read.most_common())
    if not products:
        return Check("precision used", "unknown", "no products are listed")
    if precision == "fp8":
        # Products of one input are merged; the layer's name then says of which.
        merged = sum(
            1 + layer.name.count("+")
            for layer in products
            if wanted in {tensor.dtype for tensor in (*layer.inputs, *layer.constants)}
        )
        answer = "yes" if merged >= quantised > 0 else "no"
        return Check("precision used", answer, f"{detail}; the graph quantises {quantised}")
    return Check("precision used", "yes" if read[wanted] else "no", detail)


def _no_square(layers: Sequence[Layer], tokens: ShapeRange) -> Check:
    """Whether any tensor between layers holds N_v x N values a head."""
    produced = [tensor for layer in layers for tensor in layer.outputs]
    low, high = tokens.min[1], tokens.max[1]
    if low != high:
        # Of free sizes only batch and tokens remain -1: two at the end are tokens by tokens.
        square = [t for t in produced if len(t.dims) > 2 and t.dims[-1] == t.dims[-2] == -1]
        unknown: list[Tensor] = []
    else:
        square, unknown = _large_sides(produced, high)
    if square:
        return Check(_SQUARE, "no", _named(square))
    if unknown:
        return Check(_SQUARE, "unknown", f"{_named(unknown)}: could be tokens by channels")
    hidden = sum(layer.is_opaque for layer in layers)
    if hidden:
        return Check(_SQUARE, "unknown", f"the layers of {hidden} regions are not listed")
    return Check(_SQUARE, "yes", f"{len(produced)} tensors looked at")


def _large_sides(produced: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of a graph of fixed size that are, or could be, tokens by tokens.

    A whole sequence has more than twice N_v tokens. Heads before two sides of at least N_v make
    a matrix of attention; without them it may be tokens by channels.
    """
    square: list[Tensor] = []
    unknown: list[Tensor] = []
    for tensor in produced:
        sides = [size for size in tensor.dims if size != 1]
        if len(sides) < 2 or min(sides[-2:]) < count:
            continue
        (square if len(sides) > 2 else unknown).append(tensor)
    # Tokens by channels is what activations are: only both sides of a length of tokens count.
    lengths = {count, 2 * count}
    unknown = [
        tensor
        for tensor in unknown
        if all(size in lengths or size > 2 * count for size in tensor.dims if size != 1)
        and tensor.dims[-1] in lengths
    ]
    return square, unknown


def _named(tensors: Sequence[Tensor]) -> str:
    shapes = Counter(f"{list(tensor.dims)} {tensor.dtype}" for tensor in tensors)
    some = [f"{count} of {shape}" for shape, count in shapes.most_common(_MOST_NAMED)]
    return ", ".join(some)
