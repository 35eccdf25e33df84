"""The literal capture of FLUX.2: the untouched diffusers forward, every matrix stored.

Nothing here is shared with `flux2_dit` or `capture`: the parity gate compares two
implementations, one the way the paper writes it (equations 1, 3 and 4), one the way it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers import transformer_flux2 as flux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from rism.export.spec import LiteralCapture

__all__ = ["literal_capture"]


@torch.no_grad()
def literal_capture(
    transformer: Flux2Transformer2DModel,
    *,
    clean_latents: torch.Tensor,
    noise: torch.Tensor,
    prompt_embeds: torch.Tensor,
    grid_hw: tuple[int, int],
    prompt_weights: torch.Tensor,
    feature_block: int,
    timestep: float,
) -> LiteralCapture:
    """Run the whole transformer and keep every attention matrix of the clean tokens.

    Args:
        transformer: the model as diffusers loads it.
        clean_latents: (B, N_v, C) float32.
        noise: (1, N_v, C).
        prompt_embeds: (B, N_p, E).
        grid_hw: N_h, N_w.
        prompt_weights: w, (B, N_p).
        feature_block: l'.
        timestep: sigma.
    """
    batch, tokens, channels = clean_latents.shape
    grid = torch.zeros(1, channels, *grid_hw)
    noisy_ids = Flux2KleinPipeline._prepare_latent_ids(grid)
    clean_ids = Flux2KleinPipeline._prepare_image_ids([grid])
    recorder = _Recorder(
        transformer, prompt=prompt_embeds.shape[1], clean=tokens, feature_block=feature_block
    )
    with recorder:
        transformer(
            hidden_states=torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1),
            encoder_hidden_states=prompt_embeds,
            timestep=torch.full((batch,), timestep),
            img_ids=torch.cat([noisy_ids, clean_ids], dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(prompt_embeds),
            return_dict=False,
        )
    to_prompt = torch.stack(recorder.to_prompt, dim=1)
    to_clean = torch.stack(recorder.to_clean, dim=1)
    return LiteralCapture(
        attention_vectors=(to_prompt @ prompt_weights[:, None, :, None])[..., 0],
        transition_matrices=to_clean / to_clean.sum(-1, keepdim=True),
        features=recorder.features,
        token_attention=to_prompt.sum(1),
    )


class _Recorder:
    """Replaces diffusers' attention function by an explicit softmax that is kept."""

    def __init__(
        self, transformer: Flux2Transformer2DModel, *, prompt: int, clean: int, feature_block: int
    ) -> None:
        self.transformer, self.prompt, self.clean = transformer, prompt, clean
        self.feature_block = feature_block
        self.to_prompt: list[torch.Tensor] = []
        self.to_clean: list[torch.Tensor] = []
        self.features: dict[str, torch.Tensor] = {}
        self._undo: list[Callable[[], object]] = []

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Equation 1 on (B, N, heads, d)."""
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        probabilities = scores.softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", probabilities, value)
        rows = probabilities.mean(1)[:, -self.clean :]
        if len(self.to_prompt) == self.feature_block:
            self.features["mmsa"] = out[:, -self.clean :].flatten(2)
        self.to_prompt.append(rows[:, :, : self.prompt])
        self.to_clean.append(rows[:, :, -self.clean :])
        return out

    def _keep_adaln(self, _module: Any, _args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        self.features["adaln"] = kwargs["hidden_states"][:, -self.clean :]

    def _keep_block(self, _module: Any, _args: Any, output: Any) -> None:
        hidden = output[1] if isinstance(output, tuple) else output
        self.features["block"] = hidden[:, -self.clean :]

    def __enter__(self) -> None:
        original = flux2.dispatch_attention_fn
        flux2.dispatch_attention_fn = self.attention
        self._undo.append(lambda: setattr(flux2, "dispatch_attention_fn", original))
        blocks = [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]
        block = blocks[self.feature_block]
        hook = block.attn.register_forward_pre_hook(self._keep_adaln, with_kwargs=True)
        self._undo += [hook.remove, block.register_forward_hook(self._keep_block).remove]

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()
