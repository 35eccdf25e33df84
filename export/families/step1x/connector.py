"""Step1X-Edit's connector: from a language model's hidden states to FLUX's two kinds of text.

Names are the checkpoint's. What depends on the timestep alone is a constant. The pooled vector is
made where it is needed, in `rism.export.families.step1x.modulation`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.families.step1x.sizes import ConnectorSizes
from rism.export.precision import Precision

INTO_STREAM = ("input_embedder", "self_attn_proj", "fc2", "adaLN_modulation.1")
_EPS = 1e-6
SINUSOIDS = 256
"""Channels of the timestep's embedding before its layers."""


def _sinusoids(timestep: float, channels: int) -> torch.Tensor:
    """Embed one number: cosines, then sines (1, channels) float32; arXiv 1706.03762.

    Args:
        timestep: in thousandths of the whole way, 1000 at the first step.
        channels: an even number.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    angles = timestep * torch.exp(-exponents * torch.log(torch.tensor(10000.0)))
    return torch.cat([angles.cos(), angles.sin()]).unsqueeze(0)


def timestep_constants(store: TensorStore, timestep: float) -> dict[str, torch.Tensor]:
    """Compute the constants that depend on the timestep alone; see `Step1XSingleStep`.

    Args:
        store: the transformer's tensors.
        timestep: sigma, 1 at the first step.
    """

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (store[f"{name}.{kind}"].read().float() for kind in ("weight", "bias"))
        return F.linear(x, weight, bias)

    steps = _sinusoids(1000 * timestep, SINUSOIDS)
    return {
        name: linear(second, F.silu(linear(first, steps)))
        for name, first, second in (
            ("time", "time_embed.in_layer", "time_embed.out_layer"),
            ("connector_time", "connector.S.t_embedder.mlp.0", "connector.S.t_embedder.mlp.2"),
        )
    }


class Connector(nn.Module):
    """The connector's tokens at one timestep.

    Args:
        sizes: widths.
        precision: of the attention.
    """

    def __init__(self, sizes: ConnectorSizes, *, precision: Precision) -> None:
        super().__init__()
        self.S = _Refiner(sizes, precision)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Compute the prompt's tokens (B, N_p, C).

        Args:
            hidden: hidden states (B, N_p, E).
            mask: one where there is a token, (B, N_p) float32.
            timestep: its embedding, (1, C).
        """
        mean = masked_mean(hidden, mask).to(hidden.dtype)
        tokens: torch.Tensor = self.S(hidden, mean, mask, timestep)
        return tokens


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the tokens (B, E) float32, of (B, N_p, E) and a mask (B, N_p)."""
    real = mask.unsqueeze(-1)
    return (hidden.float() * real).sum(1) / real.sum(1)


def two_layers(first: str, second: str, inputs: int, inner: int, outputs: int) -> nn.Module:
    """Make two named layers with a SiLU between them."""
    layers = (nn.Linear(inputs, inner), nn.SiLU(), nn.Linear(inner, outputs))
    return nn.Sequential(OrderedDict(zip((first, "act", second), layers, strict=True)))


class _Refiner(nn.Module):
    def __init__(self, sizes: ConnectorSizes, precision: Precision) -> None:
        super().__init__()
        width = sizes.width
        self.input_embedder = nn.Linear(sizes.hidden, width)
        self.c_embedder = two_layers("linear_1", "linear_2", sizes.hidden, width, width)
        blocks = nn.ModuleList(_RefinerBlock(sizes, precision) for _ in range(sizes.depth))
        self.individual_token_refiner = nn.ModuleDict({"blocks": blocks})

    def forward(
        self, hidden: torch.Tensor, mean: torch.Tensor, mask: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        condition = timestep + self.c_embedder(mean)
        real = mask > 0
        # Padding attends to the first token alone, and real tokens to one another.
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        allowed = (real[:, None, :, None] & real[:, None, None, :]) | first
        x: torch.Tensor = self.input_embedder(hidden)
        for block in self.individual_token_refiner["blocks"].children():
            x = block(x, condition, allowed)
        return x


class _RefinerBlock(nn.Module):
    """Attention and MLP, each with a gate that the prompt's mean and the timestep set."""

    def __init__(self, sizes: ConnectorSizes, precision: Precision) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.precision = sizes.heads, precision
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.self_attn_qkv = nn.Linear(width, 3 * width)
        self.self_attn_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = two_layers("fc1", "fc2", width, 4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        attention, feed = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        x = x + attention * self.self_attn_proj(self._attend(self.norm1(x), allowed))
        out: torch.Tensor = x + feed * self.mlp(self.norm2(x))
        return out

    def _attend(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.self_attn_qkv(x).to(self.precision.compute)
        parts = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=allowed)
        return out.transpose(1, 2).reshape(batch, tokens, width).to(x.dtype)
