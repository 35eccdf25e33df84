"""What a graph computes in: float32, bfloat16 as published, or the mixed float16 recipe.

The recipe lives in the modules that are traced, so PyTorch can run exactly what is exported.
In `fp16` the matrix products and the main attention are float16 and everything between them
float32: the residual stream of FLUX passes float16's largest number (65504). Products that are
added to the stream are computed at 1/32 of their size, for the same reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.quantisation.block_rounding import BITS, DEFAULT_BLOCK, BlockRounding
from rism.export.quantisation.layer_choice import WeightChoice

# A power of two: scaling by it is exact.
_SHRINK = 1 / 32


@dataclass(frozen=True)
class Precision:
    """Number types of one export.

    Attributes:
        name: as in `--precision`.
        compute: of matrix products, convolutions and attention.
        stream: of everything between them.
        probe: of the queries and keys that the capture reads. float16 holds normalised
            queries and keys in bfloat16 without loss, and masses eight times finer.
        probe_scale: what values of the probes are multiplied by, so that small masses stay
            above float16's smallest normal number. They are divided by it in float32.
        weights: the layers whose weights are integers of few bits, and of how many; None for
            weights that are all floats.
        wide_on_cpu: whether the form for CPUs computes in float32 although `compute` is narrower.
        stored: what 16-bit weights are stored in, where it is not `compute`.
    """

    name: str
    compute: torch.dtype
    stream: torch.dtype
    probe: torch.dtype
    probe_scale: float
    weights: WeightChoice | None = None
    wide_on_cpu: bool = False
    stored: torch.dtype | None = None

    @property
    def on_cpu(self) -> "Precision | None":
        """What the form of a graph for CPUs computes in, on the same weights; None without one."""
        if self.wide_on_cpu:
            return replace(
                self,
                compute=torch.float32,
                probe=torch.float32,
                probe_scale=1.0,
                wide_on_cpu=False,
                stored=self.compute,
            )
        return self if self.compute == torch.float32 else None

    @property
    def in_floats(self) -> "Precision":
        """The same with weights that are all floats."""
        if self.weights is None:
            return self
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return replace(self, name=names[self.stored or self.compute], weights=None)

    @property
    def mixed(self) -> bool:
        """Whether products are narrower than what lies between them."""
        return self.compute != self.stream

    def storage(self, stored: torch.dtype) -> torch.dtype:
        """Return the type that weights of type `stored` have in the bundle.

        Graphs in float32 keep 16-bit weights as they are and cast them when they run; those in
        8 bits become bfloat16, which holds each of their values.
        """
        if self.stored is not None:
            return self.stored
        if self.compute != torch.float32:
            return self.compute
        if stored == torch.float8_e4m3fn:
            return torch.bfloat16
        return stored if stored in (torch.float16, torch.bfloat16) else self.compute


PRECISIONS = {
    "fp32": Precision("fp32", torch.float32, torch.float32, torch.float32, 1.0),
    "bf16": Precision("bf16", torch.bfloat16, torch.bfloat16, torch.float16, 256.0),
    "fp16": Precision("fp16", torch.float16, torch.float32, torch.float16, 256.0),
}


def find_precision(name: str, *, block: int = DEFAULT_BLOCK, keep: Sequence[str] = ()) -> Precision:
    """Return a precision by its name: one of `PRECISIONS`, "int8" or "int4".

    The last two compute as "fp16" does, and in float32 on CPUs, with the weights of the blocks'
    products in integers; all others are float16.

    Args:
        name: as in `--precision`.
        block: numbers of a row that share a scale.
        keep: patterns of layers that stay in 16 bits besides those that always do.
    """
    if name not in BITS:
        return PRECISIONS[name]
    weights = WeightChoice(BITS[name], block, tuple(keep))
    return replace(PRECISIONS["fp16"], name=name, weights=weights, wide_on_cpu=True)


def apply_precision(
    module: nn.Module,
    precision: Precision,
    stored: Callable[[str], torch.dtype],
    *,
    into_stream: Sequence[str] = (),
    rounded: Mapping[str, BlockRounding] | None = None,
) -> None:
    """Replace the layers that hold weights by ones that cast, in place.

    Args:
        module: on any device; parameters keep their names and their device.
        precision: the types.
        stored: the type that a weight has in the checkpoint, by its name in `module`.
        into_stream: last parts of the names of layers whose result is added to the residual
            stream.
        rounded: layers whose weights are stored as integers: they are traced as `compute`.
    """
    for name, child in list(module.named_modules()):
        if isinstance(child, (nn.Linear, nn.Conv2d, nn.Embedding)):
            dtype = precision.storage(stored(f"{name}.weight"))
            if rounded and name in rounded:
                dtype = precision.compute
            shrunk = precision.compute == torch.float16 and name.endswith(tuple(into_stream))
            module.set_submodule(name, _CAST[type(child)](child, precision, dtype, shrunk=shrunk))
    for child in module.modules():
        if not isinstance(child, _Cast):
            for key, parameter in child._parameters.items():
                if parameter is not None:
                    child._parameters[key] = _parameter(parameter, precision.stream)


def _parameter(like: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(like.detach().to(dtype), requires_grad=False)


class _Cast(nn.Module):
    """A layer with its weight as stored, product in `compute`, bias and result in `stream`."""

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d | nn.Embedding,
        precision: Precision,
        dtype: torch.dtype,
        *,
        shrunk: bool,
    ) -> None:
        super().__init__()
        self.precision, self.shrunk = precision, shrunk
        self.weight = _parameter(layer.weight, dtype)
        bias = None if isinstance(layer, nn.Embedding) else layer.bias
        self.bias = None if bias is None else _parameter(bias, precision.stream)

    def product(
        self,
        x: torch.Tensor,
        multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        channels_first: bool = False,
    ) -> torch.Tensor:
        """Multiply with the weight and add the bias, of a convolution over (C, H, W)."""
        compute = self.precision.compute
        if self.shrunk:
            x = x * _SHRINK
        out = multiply(x.to(compute), self.weight.to(compute)).to(self.precision.stream)
        if self.shrunk:
            out = out * (1 / _SHRINK)
        if self.bias is None:
            return out
        return out + (self.bias[:, None, None] if channels_first else self.bias)


class _CastLinear(_Cast):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x, F.linear)


class _CastConv2d(_Cast):
    def __init__(self, layer: nn.Conv2d, *given: Any, shrunk: bool) -> None:
        super().__init__(layer, *given, shrunk=shrunk)
        self.how: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, weight, None, *self.how)

        return self.product(x, convolve, channels_first=True)


class _CastEmbedding(_Cast):
    """Rows of a table, cast after they are looked up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight).to(self.precision.stream)


def is_table(module: nn.Module) -> bool:
    """Tell whether a module's weight is only looked up in, never multiplied with."""
    return isinstance(module, (nn.Embedding, _CastEmbedding))


_CAST: dict[type[nn.Module], Callable[..., _Cast]] = {
    nn.Linear: _CastLinear,
    nn.Conv2d: _CastConv2d,
    nn.Embedding: _CastEmbedding,
}
