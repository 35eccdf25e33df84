"""The text encoder and the VAE encoder as the graphs hold them."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, Qwen3ForCausalLM

from rism.export.precision import Precision


class QwenPromptEncoder(nn.Module):
    """A Qwen3 language model cut after the last hidden state that is used.

    Args:
        model: the language model; modules are shared, not copied.
        out_layers: hidden states to concatenate; state k is what k blocks leave, without
            the final norm, so each must be less than the number of blocks.
        length: N_p; every prompt is padded to it.
        precision: of the products and of what flows between the blocks.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        out_layers: Sequence[int],
        *,
        length: int,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.out_layers = tuple(out_layers)
        self.embed_tokens = model.model.embed_tokens
        cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(length).unsqueeze(0))
        self.register_buffer("cos", cos.to(precision.stream), persistent=False)
        self.register_buffer("sin", sin.to(precision.stream), persistent=False)
        self.layers = model.model.layers[: max(out_layers)]
        for layer in self.layers:
            layer.self_attn.config._attn_implementation = register_attention(precision)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, N_p) int64 ids and mask to (B, N_p, E) float32."""
        hidden = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        places = torch.arange(length).unsqueeze(0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & attention_mask[:, None, None, :].bool()
        states = {0: hidden}
        for index, layer in enumerate(self.layers, 1):
            hidden = layer(
                hidden,
                attention_mask=allowed,
                position_ids=places,
                position_embeddings=(self.cos, self.sin),
            )
            states[index] = hidden
        return torch.cat([states[index] for index in self.out_layers], dim=-1).float()


def register_attention(precision: Precision) -> str:
    """Tell transformers of an attention that is one operator, in the precision's type."""

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        # (B, heads, N, d) each; a group of queries shares a head of keys and values.
        groups, compute = module.num_key_value_groups, precision.compute
        # In numbers: engines must see that queries and keys have as many heads.
        heads = module.config.num_attention_heads
        query, key, value = (
            x.reshape(x.shape[0], count, *x.shape[2:])
            for x, count in ((query, heads), (key, heads // groups), (value, heads // groups))
        )
        key, value = (x.to(compute).repeat_interleave(groups, dim=1) for x in (key, value))
        out = F.scaled_dot_product_attention(
            query.to(compute), key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.transpose(1, 2).to(query.dtype), None

    name = f"rism_{precision.name}"
    AttentionInterface.register(name, attention)
    return name


class VaeEncoder(nn.Module):
    """An autoencoder of FLUX up to normalised packed tokens (the posterior's mean).

    Args:
        vae: the autoencoder; modules are shared, not copied.
        mean, scale: what is subtracted from packed latents and what they are then multiplied
            with, (4 * channels,) float32, or one number for all.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        vae: AutoencoderKLFlux2 | AutoencoderKL,
        mean: torch.Tensor | float,
        scale: torch.Tensor | float,
    ) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.channels = vae.config.latent_channels
        self.register_buffer("mean", torch.as_tensor(mean), persistent=False)
        self.register_buffer("scale", torch.as_tensor(scale), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) float32 in [-1, 1] to (1, N_v, 4 * channels), row-major tokens."""
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        latents = moments[:, : self.channels].float()
        batch, channels, height, width = latents.shape
        patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        tokens = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)
        normal: torch.Tensor = (tokens - self.mean) * self.scale
        return normal
