"""The reference of Step1X-Edit's connector: hidden states to prompt tokens and one vector."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.families.step1x.sizes import ConnectorSizes

__all__ = ["ReferenceConnector", "allowed_pairs", "sinusoid"]

_LONGEST_PERIOD = 10000.0
_FREQUENCIES = 128


def sinusoid(value: float) -> torch.Tensor:
    """Return (1, 256): cosines, then sines, of `value` at falling frequencies, in float32.

    Frequencies are made in float32, as published: at 1000 their rounding is visible.
    """
    steps = torch.arange(_FREQUENCIES, dtype=torch.float32)
    frequencies = torch.exp(-math.log(_LONGEST_PERIOD) * steps / _FREQUENCIES)
    angles = torch.tensor(value, dtype=torch.float32) * frequencies
    return torch.cat([angles.cos(), angles.sin()])[None]


def allowed_pairs(mask: torch.Tensor) -> torch.Tensor:
    """Return which key each query may attend to, (B, N, N) bool.

    Real tokens see each other. Every token sees the first, padding nothing else.

    Args:
        mask: (B, N), one or true where there is a token.
    """
    real = mask > 0
    pairs = real[:, :, None] & real[:, None, :]
    pairs[:, :, 0] = True
    return pairs


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, N, E) to (B, E): the mean over real tokens."""
    weights = (mask > 0).to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1)


class _Projection(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class _TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = nn.Linear(2 * _FREQUENCIES, width)
        self.mlp = nn.Sequential(inner, nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: float) -> torch.Tensor:
        out: torch.Tensor = self.mlp(sinusoid(value))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class _RefinerBlock(nn.Module):
    """Attention among the prompt's tokens and an MLP, each behind a gate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.count = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attn_qkv = nn.Linear(width, 3 * width)
        self.self_attn_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Run it on (B, N, width), with (B, width) for the gates and (B, N, N) bool."""
        first_gate, second_gate = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.count, -1)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + first_gate * self.self_attn_proj(mixed)
        added: torch.Tensor = second_gate * self.mlp(self.norm2(x))
        return x + added


class _Blocks(nn.Module):
    def __init__(self, sizes: ConnectorSizes) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _RefinerBlock(sizes.width, sizes.heads) for _ in range(sizes.depth)
        )


class _Refiner(nn.Module):
    def __init__(self, sizes: ConnectorSizes) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(sizes.hidden, sizes.width)
        self.t_embedder = _TimeEmbedder(sizes.width)
        self.c_embedder = _Projection(sizes.hidden, sizes.width)
        self.individual_token_refiner = _Blocks(sizes)

    def forward(self, states: torch.Tensor, time: float, mask: torch.Tensor) -> torch.Tensor:
        condition = self.t_embedder(time) + self.c_embedder(masked_mean(states, mask))
        allowed = allowed_pairs(mask)
        x: torch.Tensor = self.input_embedder(states)
        for block in self.individual_token_refiner.blocks:
            x = block(x, condition, allowed)
        return x


class ReferenceConnector(nn.Module):
    """Hidden states (B, N, hidden) to tokens (B, N, width) and a pooled vector (B, pooled)."""

    def __init__(self, sizes: ConnectorSizes, *, scaled: bool) -> None:
        super().__init__()
        self.S = _Refiner(sizes)
        self.global_proj_out = nn.Linear(sizes.hidden, sizes.pooled)
        self.scale_factor = nn.Parameter(torch.zeros(1)) if scaled else None

    def forward(
        self, states: torch.Tensor, timestep: float, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it.

        Args:
            states: (B, N, hidden); rows of padding count in the tokens, not in the means.
            timestep: sigma.
            mask: (B, N).
        """
        mean = masked_mean(states, mask)
        if self.scale_factor is not None:
            mean = mean * (1 + self.scale_factor)
        tokens: torch.Tensor = self.S(states, 1000.0 * timestep, mask)
        return tokens, self.global_proj_out(mean)
