"""Rotary position embedding from a family's axis rules, with real arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rism.export.spec import Axis

__all__ = ["RotaryTable", "rotate"]

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

    def forward(self, axes: Sequence[Axis], positions: torch.Tensor | int) -> Rotary:
        """Tables for image tokens at `positions` (N, 2), or for a prompt of that length."""
        if isinstance(positions, int):
            index = torch.arange(positions, dtype=torch.float32, device=self.frequencies.device)
            given = {"index": index}
        else:
            given = {"row": positions[:, 0], "column": positions[:, 1]}
        like = next(iter(given.values()))
        columns = [given[a] if isinstance(a, str) else torch.full_like(like, a) for a in axes]
        angles = torch.stack([columns[a] for a in self.axis_of_pair], dim=1) * self.frequencies
        return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn the pairs (2 i, 2 i + 1) of (B, heads, N, d) by the tables' angles, in float32."""
    cos, sin = rotary
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)
