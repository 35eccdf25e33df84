"""Modules without weights: they are traced by shape, and filled from the checkpoint when run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.errors import ExportError
from rism.export.precision import Precision, apply_precision, is_table
from rism.export.quantisation.block_rounding import BlockRounding

Module = TypeVar("Module", bound=nn.Module)

WeightRule = StoredTensor | torch.Tensor
"""Where a weight's values are: in the checkpoint, or computed already."""


class Part:
    """The module of a graph that will be exported, without weights, and where its weights are.

    Args:
        name: of the bundle's files, such as "text_encoder".
        module: parameters on the meta device; buffers may have values.
        rules: for each parameter and buffer on the meta device its values.
        rounded: how weights are rounded that the graph stores as integers, by parameter.
        kept: linear layers that it stores as floats, and why, where others are rounded.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        rules: Mapping[str, WeightRule],
        *,
        rounded: Mapping[str, BlockRounding] | None = None,
        kept: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.module = name, module.eval().requires_grad_(False)
        self.rules, self.rounded, self.kept = dict(rules), dict(rounded or {}), dict(kept or {})
        for key, tensor in self.tensors():
            if key not in self.rules:
                if tensor.is_meta:
                    raise ExportError(f"{name}: no source is given for '{key}'")
                self.rules[key] = tensor
            if tuple(self.rules[key].shape) != tuple(tensor.shape):
                raise ExportError(
                    f"{name}: '{key}' is {list(tensor.shape)}, its source is "
                    f"{list(self.rules[key].shape)}"
                )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters and buffers by name."""
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def fill(self) -> nn.Module:
        """Read the weights and return the module, ready to run as it is exported."""
        for key, tensor in list(self.tensors()):
            rule = self.rules[key]
            value = rule.read() if isinstance(rule, StoredTensor) else rule
            if key in self.rounded:
                value = self.rounded[key].round(value)
            put_tensor(self.module, key, value.to(tensor.dtype))
        return self.module

    @property
    def rounded_tensors(self) -> dict[StoredTensor, BlockRounding]:
        """The checkpoint's tensors that are rounded, and how."""
        found = {}
        for key, rounding in self.rounded.items():
            if isinstance(rule := self.rules[key], StoredTensor):
                found[rule] = rounding
        return found

    @property
    def parameters(self) -> int:
        """How many numbers the graph holds."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def nbytes(self) -> int:
        """Size of the weights as the bundle stores them."""
        return sum(self.stored_nbytes().values())

    def stored_nbytes(self) -> dict[str, int]:
        """Return the size of each weight as the bundle stores it."""
        return {
            name: self.rounded[name].nbytes(tensor.shape)
            if name in self.rounded
            else tensor.numel() * tensor.dtype.itemsize
            for name, tensor in self.tensors()
        }

    @property
    def source_nbytes(self) -> int:
        """Size of what is read from the checkpoint for it."""
        return sum(r.nbytes for r in self.rules.values() if isinstance(r, StoredTensor))

    @property
    def largest_nbytes(self) -> int:
        """Size of the largest tensor that is held at once: tables are written in pieces."""
        tables = {f"{n}.weight" for n, m in self.module.named_modules() if is_table(m)}
        kept = (tensor for name, tensor in self.tensors() if name not in tables)
        return max((tensor.numel() * tensor.dtype.itemsize for tensor in kept), default=0)


def cast_part(
    name: str,
    module: nn.Module,
    rules: Mapping[str, WeightRule],
    precision: Precision,
    into_stream: Sequence[str],
) -> Part:
    """Bring a module's layers to a precision and make a part of it.

    Args:
        name: of the part.
        module: changed in place, see `apply_precision`.
        rules: where the values of its weights are.
        precision: what it computes in.
        into_stream: layers whose result is added to the residual stream, by the ends of names.
    """
    rounded, kept = precision.weights.of(module, rules) if precision.weights else ({}, {})
    apply_precision(
        module,
        precision,
        lambda weight: rules[weight].dtype,
        into_stream=into_stream,
        rounded=rounded,
    )
    weights = {f"{layer}.weight": rounding for layer, rounding in rounded.items()}
    return Part(name, module, rules, rounded=weights, kept=kept)


def build_empty(build: Callable[[], Module]) -> Module:
    """Build a module with parameters on the meta device and buffers with values."""
    with init_empty_weights(include_buffers=False):
        return build()


def put_tensor(module: nn.Module, key: str, value: torch.Tensor) -> None:
    """Put values in the place of a parameter or a buffer."""
    owner, _, name = key.rpartition(".")
    parent = module.get_submodule(owner)
    if name in parent._parameters:
        parent._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        parent._buffers[name] = value


@contextmanager
def weightless(module: nn.Module) -> Iterator[FakeTensorMode]:
    """Give every parameter and buffer a fake of its type on the CPU; undo it afterwards.

    A fake has a shape and no storage: a graph of any size is traced in the memory of its nodes.
    """
    mode = FakeTensorMode()
    before: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    try:
        for child in module.modules():
            groups: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
            for group in groups:
                for name, tensor in list(group.items()):
                    if tensor is not None:
                        before.append((group, name, tensor))
                        group[name] = _fake(mode, tensor)
        yield mode
    finally:
        for group, name, tensor in before:
            group[name] = tensor


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    with mode:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake
