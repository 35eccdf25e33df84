"""The text encoder and the VAE encoder as the graphs hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLFlux2
from torch import nn
from transformers import Qwen3ForCausalLM

__all__ = ["QwenPromptEncoder", "VaeEncoder"]


class QwenPromptEncoder(nn.Module):
    """A Qwen3 language model cut after the last hidden state that is used.

    Args:
        model: the language model; modules are shared, not copied.
        out_layers: hidden states to concatenate; state k is what k blocks leave, without
            the final norm, so each must be less than the number of blocks.
    """

    def __init__(self, model: Qwen3ForCausalLM, out_layers: Sequence[int]) -> None:
        super().__init__()
        self.out_layers = tuple(out_layers)
        self.embed_tokens = model.model.embed_tokens
        self.rotary_emb = model.model.rotary_emb
        self.layers = model.model.layers[: max(out_layers)]
        for layer in self.layers:
            layer.self_attn.config._attn_implementation = "eager"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, N_p) int64 ids and mask to (B, N_p, E) float32."""
        hidden = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        places = torch.arange(length).unsqueeze(0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & attention_mask[:, None, None, :].bool()
        mask = torch.where(allowed, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        rotary = self.rotary_emb(hidden, places)
        states = {0: hidden}
        for index, layer in enumerate(self.layers, 1):
            hidden = layer(
                hidden, attention_mask=mask, position_ids=places, position_embeddings=rotary
            )
            states[index] = hidden
        return torch.cat([states[index] for index in self.out_layers], dim=-1).float()


class VaeEncoder(nn.Module):
    """FLUX.2's autoencoder up to normalised packed tokens (the posterior's mean).

    Args:
        vae: the autoencoder; modules are shared, not copied.
        mean, variance: the statistics of its batch norm, (4 * channels,) float32.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, vae: AutoencoderKLFlux2, mean: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.channels = vae.config.latent_channels
        self.register_buffer("mean", mean, persistent=False)
        deviation = (variance + vae.config.batch_norm_eps).sqrt()
        self.register_buffer("scale", 1 / deviation, persistent=False)

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
