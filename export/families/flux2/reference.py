"""The reference of FLUX.2-klein: diffusers' own forward pass, every attention matrix stored.

Nothing here is shared with `dit` or `Capture`: the parity gate compares two implementations, one
as the paper writes it (equations 1, 3 and 4), one as it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.models.transformers import transformer_flux2 as flux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from torch import nn
from transformers import Qwen3Model

from rism.export.checkpoint.layer_streaming import stream_weights
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.families.flux2.dit import MODULATIONS
from rism.export.precision import Precision
from rism.export.spec import ReferenceCapture, ReferenceInputs, ReferencePrompt, RgbImage

if TYPE_CHECKING:
    from rism.export.families.flux2.klein import KleinModel

# Folded into constants by the exporter from unrounded weights; the constants are rounded.
_FOLDED = ("time_guidance_embed.", *(f"{name}." for name in MODULATIONS))


@dataclass(frozen=True)
class ReferenceKlein:
    """A `ReferenceModel`: the classes of diffusers and transformers, weights streamed in.

    Attributes:
        model: the checkpoint.
        precision: weights are rounded to what it stores; everything runs in float32.
    """

    model: KleinModel
    precision: Precision

    @torch.no_grad()
    def text(self, instructions: Sequence[str], image_hwc: RgbImage) -> list[ReferencePrompt]:
        """Encode instructions by the pipeline's own function, which does not see the image."""
        del image_hwc
        layers, store = self.model.blocks.out_layers, self.model.files.text
        model = build_empty(lambda: Qwen3Model(self.model.files.text_config(max(layers) + 1)))
        names = {name: f"model.{name}" for name in model.state_dict() if f"model.{name}" in store}
        model.norm = nn.Identity()  # follows the last hidden state that is used
        rounded = self.model.text_encoder(self.precision).rounded_tensors
        stream_weights(model, store.renamed(names), self.precision, rounded=rounded)
        stream = self.precision.stream
        model.rotary_emb.register_forward_hook(  # tables are as narrow as what they turn
            lambda _module, _args, tables: tuple(table.to(stream).float() for table in tables)
        )
        embeds: torch.Tensor = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            text_encoder=model,
            tokenizer=self.model.tokenizer,
            prompt=list(instructions),
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_sequence_length=self.model.spec.prompt.max_length,
            hidden_states_layers=list(layers),
        )
        return [ReferencePrompt(each) for each in embeds]

    def image_embeds(self, image_hwc: RgbImage) -> None:
        """See `ReferenceModel`: the text encoder takes no image."""

    @torch.no_grad()
    def vae_latents(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images (1, 3, H, W) in [-1, 1] to packed, normalised latents (1, N_v, C)."""
        files = self.model.files
        vae = build_empty(lambda: AutoencoderKLFlux2.from_config(files.vae_config))
        vae.decoder = vae.post_quant_conv = None  # not needed, and not read from a makers' file
        stream_weights(vae, files.vae, self.precision, exact=("bn.",))
        return [encode_image(vae, image) for image in images]

    def dit(self, inputs: Sequence[ReferenceInputs], feature_block: int) -> list[ReferenceCapture]:
        """Run the whole transformer on each input."""
        transformer = build_empty(self.model.empty_transformer)
        # Nothing after the last block is captured, and single files name it otherwise.
        transformer.norm_out, transformer.proj_out = _Skipped(), nn.Identity()
        stream_weights(
            transformer,
            self.model.transformer_store,
            self.precision,
            exact=_FOLDED,
            rounded=self.model.transformer(self.precision).rounded_tensors,
        )
        stream = self.precision.stream
        for name in MODULATIONS:
            getattr(transformer, name).register_forward_hook(
                lambda _module, _args, folded: folded.to(stream).float()
            )
        return [
            reference_capture(
                transformer,
                clean_latents=given.clean_latents,
                noise=given.noise,
                prompt_embeds=given.prompt.embeds,
                prompt_weights=given.prompt_weights,
                grid_hw=given.grid_hw,
                noisy_tokens=given.noisy_tokens,
                feature_block=feature_block,
                timestep=self.model.spec.timestep,
            )
            for given in inputs
        ]


class _Skipped(nn.Module):
    """Stands for the final modulated norm."""

    def forward(self, hidden_states: torch.Tensor, _temb: torch.Tensor) -> torch.Tensor:
        return hidden_states


def encode_image(vae: AutoencoderKLFlux2, image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to packed latents (B, N_v, C), by the pipeline's own functions."""
    packed = Flux2KleinPipeline._patchify_latents(vae.encode(image).latent_dist.mode())
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    latents: torch.Tensor = Flux2KleinPipeline._pack_latents((packed - mean) / std)
    return latents


@torch.no_grad()
def reference_capture(
    transformer: Flux2Transformer2DModel,
    *,
    clean_latents: torch.Tensor,
    noise: torch.Tensor,
    prompt_embeds: torch.Tensor,
    grid_hw: tuple[int, int],
    prompt_weights: torch.Tensor,
    feature_block: int,
    timestep: float,
    noisy_tokens: torch.Tensor | slice = slice(None),
) -> ReferenceCapture:
    """Run the whole transformer and keep every attention matrix of the clean tokens.

    Args:
        transformer: the model as diffusers loads it.
        clean_latents: (B, N_v, C) float32.
        noise: (1, N_n, C).
        prompt_embeds: (B, N_p, E).
        grid_hw: N_h, N_w.
        prompt_weights: w, (B, N_p).
        feature_block: l'.
        timestep: sigma.
        noisy_tokens: where on the grid the noisy tokens are, (N_n,) int64 or all.
    """
    batch, tokens, channels = clean_latents.shape
    grid = torch.zeros(1, channels, *grid_hw)
    noisy_ids = Flux2KleinPipeline._prepare_latent_ids(grid)[:, noisy_tokens]
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
    return ReferenceCapture.of(
        recorder.to_prompt, recorder.to_clean, recorder.features, prompt_weights
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
