"""Rotary position embedding from a family's axis rules, with real arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rism.export.family import Axis, FamilySpec
from rism.export.spec import PromptTokens

Rotary = tuple[torch.Tensor, torch.Tensor]


class RotaryTable(nn.Module):
    """cos and sin (N, d / 2) of tokens at rotary positions given by axis rules.

    Pair i of axis a turns by position[a] * theta^(-2 i / dim[a]) (RoPE, arXiv 2104.09864,
    with one set of frequencies per axis as in FLUX).
    """

    frequencies: torch.Tensor

    def __init__(self, axes_dims: Sequence[int], theta: float) -> None:
        super().__init__()
        parts = [
            theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim) for dim in axes_dims
        ]
        self.axis_of_pair = [axis for axis, part in enumerate(parts) for _ in part]
        self.register_buffer("frequencies", torch.cat(parts).float(), persistent=False)

    def forward(self, columns: Sequence[torch.Tensor]) -> Rotary:
        """Tables for tokens whose position on each axis is given, (N,) float32 each."""
        angles = torch.stack([columns[a] for a in self.axis_of_pair], dim=1) * self.frequencies
        return angles.cos(), angles.sin()

    def sequence(
        self,
        family: FamilySpec,
        prompt: PromptTokens,
        noisy_positions: torch.Tensor,
        positions: torch.Tensor,
    ) -> Rotary:
        """Tables for [prompt; noisy; clean].

        Args:
            family: the axis rules.
            prompt: with its own positions, or tokens in their order.
            noisy_positions: rows and columns of the noisy tokens, (N_n, 2).
            positions: likewise of the clean tokens, (N_v, 2).
        """
        tables = (
            self.prompt(family.prompt_axes, prompt.embeds.shape[1])
            if prompt.positions is None
            else self(prompt.positions.unbind(1)),
            self.image(family.noisy_axes, noisy_positions),
            self.image(family.clean_axes, positions),
        )
        cos, sin = zip(*tables, strict=True)
        return torch.cat(cos), torch.cat(sin)

    def prompt(self, axes: Sequence[Axis], length: int) -> Rotary:
        """Tables for a prompt of `length` tokens."""
        index = torch.arange(length, dtype=torch.float32, device=self.frequencies.device)
        return self.forward(_columns(axes, {"index": index}))

    def image(self, axes: Sequence[Axis], positions: torch.Tensor) -> Rotary:
        """Tables for image tokens at rows and columns (N, 2)."""
        return self.forward(_columns(axes, {"row": positions[:, 0], "column": positions[:, 1]}))


def _columns(axes: Sequence[Axis], given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    like = next(iter(given.values()))

    def column(axis: Axis) -> torch.Tensor:
        if isinstance(axis, tuple):
            return given[axis[0]] + axis[1]
        return given[axis] if isinstance(axis, str) else torch.full_like(like, axis)

    return [column(axis) for axis in axes]


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn the pairs (2 i, 2 i + 1) of (B, heads, N, d) by the tables' angles, in float32."""
    cos, sin = rotary
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.reshape(x.shape).to(x.dtype)
