"""Attention processors for training that compute the probabilities, which the losses need."""

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2ParallelSelfAttention,
)
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor]


class Probe:
    """Captures the method's quantities in a forward pass.

    After a pass `coarse[l]` and `refined[l]` (B, N_v) float32 are a_l and T_l a_l of `blocks`,
    and `features` (B, N_v, D) is the attention output of `feature_block`.
    """

    def __init__(self, transformer: Flux2Transformer2DModel, *, blocks: range, feature_block: int):
        self.blocks, self.feature_block = blocks, feature_block
        self.hidden: dict[str, torch.Tensor] = {}  # outputs of whole blocks, by name
        self.start(prompt_length=0, clean_start=0)
        doubles = list(transformer.transformer_blocks)
        for index, block in enumerate([*doubles, *transformer.single_transformer_blocks]):
            kind = _DoubleProcessor if index < len(doubles) else _SingleProcessor
            block.attn.processor = kind(self, index)

    def start(self, *, prompt_length: int, clean_start: int) -> None:
        """Clear the last pass and set the spans of the next."""
        self.prompt_length, self.clean_start = prompt_length, clean_start
        self.coarse: dict[int, torch.Tensor] = {}
        self.refined: dict[int, torch.Tensor] = {}
        self._features: torch.Tensor | None = None

    @property
    def features(self) -> torch.Tensor:
        """Attention output of the feature block in the last pass, (B, N_v, D)."""
        assert self._features is not None, "no forward pass yet"
        return self._features

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of (B, N, heads, d) tensors, heads concatenated: (B, N, heads * d)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
        out: torch.Tensor = (probabilities @ v).transpose(1, 2).flatten(2)
        if index in self.blocks:
            rows = probabilities[:, :, self.clean_start :].mean(1).float()
            a = rows[:, :, : self.prompt_length].sum(-1)
            to_clean = rows[:, :, self.clean_start :]
            propagated = (to_clean @ a.unsqueeze(-1)).squeeze(-1)
            self.coarse[index] = a
            self.refined[index] = propagated / to_clean.sum(-1).clamp_min(1e-9)
        if index == self.feature_block:
            self._features = out[:, self.clean_start :]
        return out


def _rotate(x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    assert rotary is not None, "FLUX.2 always passes its tables"
    cos, sin = (part[None, :, None, :].to(x.dtype) for part in rotary)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * cos + turned * sin


class _DoubleProcessor:
    def __init__(self, probe: Probe, index: int) -> None:
        self.probe, self.index = probe, index

    def __call__(
        self,
        attn: Flux2Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG002 - diffusers passes it
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def heads(text: nn.Module, image: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
            both = text(encoder_hidden_states), image(hidden_states)
            first, second = (x.reshape(*x.shape[:-1], -1, attn.head_dim) for x in both)
            return first, second

        text_q, image_q = heads(attn.add_q_proj, attn.to_q)
        text_k, image_k = heads(attn.add_k_proj, attn.to_k)
        q = torch.cat([attn.norm_added_q(text_q), attn.norm_q(image_q)], dim=1)
        k = torch.cat([attn.norm_added_k(text_k), attn.norm_k(image_k)], dim=1)
        v = torch.cat(heads(attn.add_v_proj, attn.to_v), dim=1)
        q, k = _rotate(q, image_rotary_emb).to(v.dtype), _rotate(k, image_rotary_emb).to(v.dtype)
        out = self.probe.attend(self.index, q, k, v)
        length = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])


class _SingleProcessor:
    def __init__(self, probe: Probe, index: int) -> None:
        self.probe, self.index = probe, index

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG002 - diffusers passes it
        image_rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        fused = attn.to_qkv_mlp_proj(hidden_states)
        qkv, mlp = fused.split([3 * attn.inner_dim, fused.shape[-1] - 3 * attn.inner_dim], dim=-1)
        q, k, v = (x.reshape(*x.shape[:-1], -1, attn.head_dim) for x in qkv.chunk(3, dim=-1))
        q = _rotate(attn.norm_q(q), image_rotary_emb).to(v.dtype)
        k = _rotate(attn.norm_k(k), image_rotary_emb).to(v.dtype)
        out = self.probe.attend(self.index, q, k, v)
        result: torch.Tensor = attn.to_out(torch.cat([out, attn.mlp_act_fn(mlp)], dim=-1))
        return result
