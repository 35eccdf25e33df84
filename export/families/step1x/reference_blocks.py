"""Blocks of the reference of Step1X-Edit's transformer, and what a run captures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from rism.export.checkpoint.layer_streaming import weight_rounding
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.precision import Precision
from rism.export.quantisation.block_rounding import BlockRounding
from rism.export.spec import ReferenceCapture

_THETA = 10000.0
_EPSILON = 1e-6
# Cast to float32 a piece is up to twice as large.
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Weights:
    """Weights that are read from the checkpoint each time they are used, a piece at a time.

    Attributes:
        tensors: by the makers' names; parts of one tensor follow each other along its rows.
        precision: they are rounded to the types this stores.
        exact: beginnings of names that are not rounded.
        prefix: stands before every name that is asked for.
        rounded: tensors that the bundle stores as integers, and how.
    """

    tensors: Mapping[str, tuple[StoredTensor, ...]]
    precision: Precision
    exact: tuple[str, ...] = ()
    prefix: str = ""
    rounded: Mapping[StoredTensor, BlockRounding] = field(default_factory=dict)

    def under(self, name: str) -> Weights:
        """Return the weights of a part."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def vector(self, name: str) -> torch.Tensor:
        """Read a bias, a scale or the like: float32."""
        name = self.prefix + name
        value = torch.cat([part.read() for part in self.tensors[name]])
        return (value if self._is_exact(name) else value.to(self.precision.stream)).float()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Apply a layer to float32."""
        key, out = f"{self.prefix}{name}.weight", []
        for part in self.tensors[key]:
            rounding = weight_rounding(part, self.precision, self.rounded)
            if self._is_exact(key):
                rounding = torch.Tensor.float
            out += [F.linear(x, rounding(rows)) for rows in part.chunks(_PIECE_BYTES)]
        return torch.cat(out, dim=-1) + self.vector(f"{name}.bias")

    def _is_exact(self, name: str) -> bool:
        return any(name.startswith(beginning) for beginning in self.exact)


@dataclass
class Step1XRecord:
    """Captured quantities of one run.

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
        """Equations 3 and 4 on the stored matrices, with w (B, N_p)."""
        return ReferenceCapture.of(self.to_prompt, self.to_clean, self.features, prompt_weights)

    def attention(self, rows: torch.Tensor, mixed: torch.Tensor, seen: torch.Tensor) -> None:
        """Keep the attention of the block that is running.

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


def two_layers(weights: Weights, first: str, second: str, x: torch.Tensor) -> torch.Tensor:
    """Apply two layers with a SiLU between them."""
    return weights.linear(second, F.silu(weights.linear(first, x)))


def modulation(weights: Weights, vector: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """(B, width) to `parts` tensors (B, 1, width): shift, scale and gate of each site."""
    return weights.linear("lin", F.silu(vector))[:, None].chunk(parts, dim=-1)


def _shifted(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    normal = F.layer_norm(x, x.shape[-1:], eps=_EPSILON)
    return normal * (1 + scale) + shift


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _heads(weights: Weights, qkv: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """(B, N, 3 width) to normalised queries and keys, and values, each (B, N, heads, d)."""

    def normal(x: torch.Tensor, name: str) -> torch.Tensor:
        rms = (x.square().mean(-1, keepdim=True) + _EPSILON).rsqrt()
        return weights.vector(f"norm.{name}.scale") * x * rms

    query, key, value = qkv.reshape(*qkv.shape[:2], 3, heads, -1).unbind(2)
    return [normal(query, "query_norm"), normal(key, "key_norm"), value]


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


def double_block(
    weights: Weights,
    heads: int,
    hidden: torch.Tensor,
    vector: torch.Tensor,
    turns: torch.Tensor,
    record: Step1XRecord,
) -> torch.Tensor:
    """Two streams, prompt and image, with their own weights and joint attention.

    Args:
        weights: of the block.
        heads: of the attention.
        hidden: [prompt; noisy; clean], (B, N, width).
        vector: what sets the modulation, (B, width).
        turns: of `rotary_turns`, (N, d / 2).
        record: keeps the attention.
    """
    spans = {"txt": hidden[:, : record.prompt], "img": hidden[:, record.prompt :]}
    given, seen, parts = {}, {}, []
    for stream, x in spans.items():
        given[stream] = modulation(weights.under(f"{stream}_mod"), vector, 6)
        seen[stream] = _shifted(x, *given[stream][:2])
        attention = weights.under(f"{stream}_attn")
        parts.append(_heads(attention, attention.linear("qkv", seen[stream]), heads))
    query, key, value = (torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))
    mixed, rows = _attend(_turned(query, turns), _turned(key, turns), value, record.clean)
    record.attention(rows, mixed, seen["img"])
    out = []
    attended = {"txt": mixed[:, : record.prompt], "img": mixed[:, record.prompt :]}
    for stream, x in spans.items():
        _, _, first_gate, shift, scale, second_gate = given[stream]
        x = x + first_gate * weights.linear(f"{stream}_attn.proj", attended[stream])
        inner = _gelu_tanh(weights.linear(f"{stream}_mlp.0", _shifted(x, shift, scale)))
        out.append(x + second_gate * weights.linear(f"{stream}_mlp.2", inner))
    return torch.cat(out, dim=1)


def single_block(
    weights: Weights,
    heads: int,
    hidden: torch.Tensor,
    vector: torch.Tensor,
    turns: torch.Tensor,
    record: Step1XRecord,
) -> torch.Tensor:
    """One stream over all tokens; attention and MLP in parallel, with fused projections.

    Args as those of `double_block`.
    """
    shift, scale, gate = modulation(weights.under("modulation"), vector, 3)
    seen = _shifted(hidden, shift, scale)
    widened, width = weights.linear("linear1", seen), hidden.shape[-1]
    qkv, beside = widened[..., : 3 * width], widened[..., 3 * width :]
    query, key, value = _heads(weights, qkv, heads)
    mixed, rows = _attend(_turned(query, turns), _turned(key, turns), value, record.clean)
    record.attention(rows, mixed, seen)
    return hidden + gate * weights.linear("linear2", torch.cat([mixed, _gelu_tanh(beside)], dim=-1))
