"""Blocks of the reference of Step1X-Edit's transformer, and what is kept of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.spec import ReferenceCapture

__all__ = [
    "DoubleBlock",
    "SingleBlock",
    "Step1XRecord",
    "TwoLayers",
    "rotary_turns",
]

_THETA = 10000.0
_EPSILON = 1e-6
_MLP_RATIO = 4


@dataclass
class Step1XRecord:
    """What is kept of one run.

    Attributes:
        clean, prompt: how many tokens of each kind there are.
        feature_block: l', counted over double then single blocks.
        keep_blocks: whether `blocks` is filled.
        tokens: (B, N_p, context) as the connector gives them, before anything is added.
        pooled: (B, vector), likewise.
        vector: (B, width), what all modulation is made of.
        blocks: (B, N_p + 2 N_v, width) after each block.
        to_prompt: A_vp of each block, (B, N_v, N_p), averaged over heads.
        to_clean: A_vv of each block, (B, N_v, N_v), likewise.
        features: by site, (B, N_v, width).
    """

    clean: int
    prompt: int
    feature_block: int
    keep_blocks: bool = False
    tokens: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    vector: torch.Tensor | None = None
    blocks: list[torch.Tensor] = field(default_factory=list)
    to_prompt: list[torch.Tensor] = field(default_factory=list)
    to_clean: list[torch.Tensor] = field(default_factory=list)
    features: dict[str, torch.Tensor] = field(default_factory=dict)

    def capture(self, prompt_weights: torch.Tensor) -> ReferenceCapture:
        """Equations 3 and 4 on the stored matrices.

        Args:
            prompt_weights: w, (B, N_p).
        """
        to_prompt = torch.stack(self.to_prompt, dim=1)
        to_clean = torch.stack(self.to_clean, dim=1)
        return ReferenceCapture(
            attention_vectors=(to_prompt @ prompt_weights[:, None, :, None])[..., 0],
            transition_matrices=to_clean / to_clean.sum(-1, keepdim=True),
            features=self.features,
            token_attention=to_prompt.sum(1),
        )

    def attention(self, rows: torch.Tensor, mixed: torch.Tensor, seen: torch.Tensor) -> None:
        """Keep what the running block attends to.

        Args:
            rows: attention of the clean tokens, (B, N_v, N_p + 2 N_v).
            mixed: output of the heads before the projection, (B, N, width).
            seen: what queries are made of, (B, N, width); the image's tokens suffice.
        """
        if len(self.to_prompt) == self.feature_block:
            self.features["mmsa"] = mixed[:, -self.clean :]
            self.features["adaln"] = seen[:, -self.clean :]
        self.to_prompt.append(rows[..., : self.prompt])
        self.to_clean.append(rows[..., -self.clean :])

    def block(self, hidden: torch.Tensor) -> None:
        """Keep the stream after the block that ran last."""
        if len(self.to_prompt) - 1 == self.feature_block:
            self.features["block"] = hidden[:, -self.clean :]
        if self.keep_blocks:
            self.blocks.append(hidden)


class _Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x * (x.square().mean(-1, keepdim=True) + _EPSILON).rsqrt()


class _QueryKeyNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = _Rms(width), _Rms(width)


class _SelfAttention(nn.Module):
    """The weights of one stream's attention; streams are joined in the block."""

    def __init__(self, sizes: Step1XSizes) -> None:
        super().__init__()
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.norm = _QueryKeyNorm(sizes.width // sizes.heads)
        self.proj = nn.Linear(sizes.width, sizes.width)


class TwoLayers(nn.Module):
    """(B, inputs) to (B, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        out: torch.Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return out


class _Modulation(nn.Module):
    """(B, width) to `parts` tensors (B, 1, width): shift, scale and gate of each site."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts, self.lin = parts, nn.Linear(width, parts * width)

    def forward(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values: torch.Tensor = self.lin(F.silu(vector))
        return values[:, None].chunk(self.parts, dim=-1)


def _shifted(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    normal = F.layer_norm(x, x.shape[-1:], eps=_EPSILON)
    return normal * (1 + scale) + shift


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _heads(qkv: torch.Tensor, heads: int, norm: _QueryKeyNorm) -> list[torch.Tensor]:
    """(B, N, 3 width) to normalised queries and keys, and values, each (B, N, heads, d)."""
    query, key, value = qkv.reshape(*qkv.shape[:2], 3, heads, -1).unbind(2)
    return [norm.query_norm(query), norm.key_norm(key), value]


def rotary_turns(positions: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return one complex number of modulus one for each pair of a head's numbers.

    Args:
        positions: (N, axes) of any real type.
        axes: dimensions of each axis.

    Returns:
        (N, d / 2) complex64, axis after axis.
    """
    angles = []
    for place, width in zip(positions.double().unbind(-1), axes, strict=True):
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        angles.append(place[:, None] / _THETA ** exponents[None])
    angle = torch.cat(angles, dim=-1)
    return torch.complex(angle.cos().float(), angle.sin().float())


def _turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """(B, N, heads, d), number 2i and 2i + 1 turned as a complex number."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(-2)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1, a head at a time.

    Args:
        query: (B, N, heads, d), already turned.
        key: likewise.
        value: (B, N, heads, d).
        rows: how many of the last queries' probabilities are wanted.

    Returns:
        Heads side by side (B, N, heads * d), and probabilities averaged over them (B, rows, N).
    """
    heads, size = query.shape[2:]
    mean = query.new_zeros(query.shape[0], rows, key.shape[1])
    mixed = []
    for head in range(heads):
        scores = query[:, :, head] @ key[:, :, head].transpose(1, 2) / math.sqrt(size)
        probabilities = scores.softmax(-1)
        mixed.append(probabilities @ value[:, :, head])
        mean += probabilities[:, probabilities.shape[1] - rows :] / heads
    return torch.cat(mixed, dim=-1), mean


class DoubleBlock(nn.Module):
    """Prompt and image with weights of their own, attending to each other."""

    def __init__(self, sizes: Step1XSizes) -> None:
        super().__init__()
        self.count = sizes.heads
        hidden = _MLP_RATIO * sizes.width
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", _Modulation(sizes.width, 6))
            self.add_module(f"{stream}_attn", _SelfAttention(sizes))
            layers = nn.Linear(sizes.width, hidden), nn.Linear(hidden, sizes.width)
            gelu = nn.GELU(approximate="tanh")
            self.add_module(f"{stream}_mlp", nn.Sequential(layers[0], gelu, layers[1]))

    def forward(
        self, hidden: torch.Tensor, vector: torch.Tensor, turns: torch.Tensor, record: Step1XRecord
    ) -> torch.Tensor:
        """Run it on [prompt; noisy; clean], (B, N, width), with (B, width) and (N, d / 2)."""
        spans = {"txt": hidden[:, : record.prompt], "img": hidden[:, record.prompt :]}
        given, seen, parts = {}, {}, []
        for stream, x in spans.items():
            given[stream] = getattr(self, f"{stream}_mod")(vector)
            seen[stream] = _shifted(x, *given[stream][:2])
            attention = getattr(self, f"{stream}_attn")
            parts.append(_heads(attention.qkv(seen[stream]), self.count, attention.norm))
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))
        mixed, rows = _attend(_turned(query, turns), _turned(key, turns), value, record.clean)
        record.attention(rows, mixed, seen["img"])
        out = []
        heads = {"txt": mixed[:, : record.prompt], "img": mixed[:, record.prompt :]}
        for stream, x in spans.items():
            _, _, first_gate, shift, scale, second_gate = given[stream]
            x = x + first_gate * getattr(self, f"{stream}_attn").proj(heads[stream])
            x = x + second_gate * getattr(self, f"{stream}_mlp")(_shifted(x, shift, scale))
            out.append(x)
        return torch.cat(out, dim=1)


class SingleBlock(nn.Module):
    """All tokens alike; attention and MLP side by side, from one layer into one."""

    def __init__(self, sizes: Step1XSizes) -> None:
        super().__init__()
        self.count, self.width = sizes.heads, sizes.width
        hidden = _MLP_RATIO * sizes.width
        self.linear1 = nn.Linear(sizes.width, 3 * sizes.width + hidden)
        self.linear2 = nn.Linear(sizes.width + hidden, sizes.width)
        self.norm = _QueryKeyNorm(sizes.width // sizes.heads)
        self.modulation = _Modulation(sizes.width, 3)

    def forward(
        self, hidden: torch.Tensor, vector: torch.Tensor, turns: torch.Tensor, record: Step1XRecord
    ) -> torch.Tensor:
        """Run it on [prompt; noisy; clean], (B, N, width), with (B, width) and (N, d / 2)."""
        shift, scale, gate = self.modulation(vector)
        seen = _shifted(hidden, shift, scale)
        widened = self.linear1(seen)
        qkv, beside = widened[..., : 3 * self.width], widened[..., 3 * self.width :]
        query, key, value = _heads(qkv, self.count, self.norm)
        mixed, rows = _attend(_turned(query, turns), _turned(key, turns), value, record.clean)
        record.attention(rows, mixed, seen)
        added: torch.Tensor = gate * self.linear2(torch.cat([mixed, _gelu_tanh(beside)], dim=-1))
        return hidden + added
