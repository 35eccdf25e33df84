"""PyTorch models whose layers read their weights from the checkpoint each time they run.

The parity gate runs these: the model's own code in float32, on weights rounded as the bundle
stores them, in the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.checkpoint.meta_modules import put_tensor
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.precision import Precision
from rism.export.quantisation.block_rounding import BlockRounding

# Cast to float32 a piece is up to twice as large.
_PIECE_BYTES = 16 * 2**20

Round = Callable[[torch.Tensor], torch.Tensor]


def stream_weights(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    precision: Precision,
    *,
    exact: tuple[str, ...] = (),
    rounded: Mapping[StoredTensor, BlockRounding] | None = None,
) -> None:
    """Make a module on the meta device runnable, in place.

    Args:
        module: built by `build_empty`.
        tensors: by names of parameters and buffers in `module`.
        precision: weights are rounded to the types this stores.
        exact: beginnings of names that are not rounded.
        rounded: tensors that the bundle stores as integers, and how.
    """
    for name, child in list(module.named_modules()):
        kind = _STREAMED.get(type(child))
        if kind is not None:
            weight = tensors[f"{name}.weight"]
            rounding = weight_rounding(weight, precision, rounded or {})
            if name.startswith(exact or ("\0",)):
                rounding = torch.Tensor.float
            module.set_submodule(name, kind(child, weight, rounding))
    persistent = set(module.state_dict())
    own = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in [name for name in own if name in persistent]:
        value = tensors[name].read()
        if value.is_floating_point():
            kept = value if name.startswith(exact or ("\0",)) else value.to(precision.stream)
            value = kept.float()
        put_tensor(module, name, value)
    module.eval()


def weight_rounding(
    weight: StoredTensor, precision: Precision, rounded: Mapping[StoredTensor, BlockRounding]
) -> Round:
    """Return what rounds rows of a weight as the bundle stores them, and makes them float32."""
    if weight in rounded:
        return rounded[weight].round
    dtype = precision.storage(weight.dtype)
    return lambda rows: rows.to(dtype).float()


class _Streamed(nn.Module):
    def __init__(self, layer: nn.Module, weight: StoredTensor, rounding: Round) -> None:
        super().__init__()
        self.source, self.rounding = weight, rounding
        self.bias = getattr(layer, "bias", None)


class _Linear(_Streamed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [F.linear(x, self.rounding(rows)) for rows in self.source.chunks(_PIECE_BYTES)]
        out = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return out if self.bias is None else out + self.bias


class _Conv2d(_Streamed):
    def __init__(self, layer: nn.Conv2d, weight: StoredTensor, rounding: Round) -> None:
        super().__init__(layer, weight, rounding)
        self.how: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.rounding(self.source.read()), self.bias, *self.how)


class _Conv3d(_Streamed):
    def __init__(self, layer: nn.Conv3d, weight: StoredTensor, rounding: Round) -> None:
        super().__init__(layer, weight, rounding)
        self.stride = layer.stride
        # transformers asks a patch embedding for the type of its weight.
        self.weight = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, self.rounding(self.source.read()), self.bias, self.stride)


class _Embedding(_Streamed):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found, places = torch.unique(ids, return_inverse=True)
        rows = [self.source.rows(int(i), int(i) + 1).read() for i in found]
        return self.rounding(torch.cat(rows))[places]


_STREAMED: dict[type[nn.Module], Callable[[Any, StoredTensor, Round], nn.Module]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.Embedding: _Embedding,
}
