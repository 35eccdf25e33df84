"""The reference of Step1X-Edit's connector: hidden states to prompt tokens and one vector."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from rism.export.families.step1x.reference_blocks import Weights, two_layers
from rism.export.families.step1x.sizes import ConnectorSizes

_LONGEST_PERIOD = 10000.0
_FREQUENCIES = 128
_EPSILON = 1e-6


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


def connect(
    weights: Weights,
    sizes: ConnectorSizes,
    states: torch.Tensor,
    timestep: float,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the connector.

    Args:
        weights: of the connector.
        sizes: likewise.
        states: (B, N, hidden); rows of padding count in the tokens, not in the means.
        timestep: sigma.
        mask: (B, N).

    Returns:
        Tokens (B, N, width) and a pooled vector (B, pooled).
    """
    mean = pooled = masked_mean(states, mask)
    if f"{weights.prefix}scale_factor" in weights.tensors:
        pooled = mean * (1 + weights.vector("scale_factor"))
    refiner = weights.under("S")
    time = two_layers(refiner, "t_embedder.mlp.0", "t_embedder.mlp.2", sinusoid(1000.0 * timestep))
    means = two_layers(refiner, "c_embedder.linear_1", "c_embedder.linear_2", mean)
    x, allowed = refiner.linear("input_embedder", states), allowed_pairs(mask)
    for index in range(sizes.depth):
        block = refiner.under(f"individual_token_refiner.blocks.{index}")
        x = _refine(block, sizes.heads, x, time + means, allowed)
    return x, weights.linear("global_proj_out", pooled)


def _refine(
    weights: Weights, heads: int, x: torch.Tensor, condition: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """Attention among the prompt's tokens and an MLP, each behind a gate: (B, N, width)."""

    def normal(name: str, x: torch.Tensor) -> torch.Tensor:
        scale, shift = weights.vector(f"{name}.weight"), weights.vector(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], scale, shift, _EPSILON)

    gates = weights.linear("adaLN_modulation.1", F.silu(condition))[:, None]
    first_gate, second_gate = gates.chunk(2, dim=-1)
    qkv = weights.linear("self_attn_qkv", normal("norm1", x))
    query, key, value = (
        part.transpose(1, 2) for part in qkv.reshape(*x.shape[:2], 3, heads, -1).unbind(2)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    x = x + first_gate * weights.linear("self_attn_proj", mixed)
    return x + second_gate * two_layers(weights, "mlp.fc1", "mlp.fc2", normal("norm2", x))
