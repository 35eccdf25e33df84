"""FLUX.2-klein: diffusers' Flux2KleinPipeline, its sizes read from the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from transformers import PreTrainedTokenizerBase, Qwen2TokenizerFast, Qwen3ForCausalLM

from rism.export.checkpoint import load_component, read_json
from rism.export.encoders import QwenPromptEncoder, VaeEncoder
from rism.export.errors import CheckpointError
from rism.export.families.flux2_dit import Flux2SingleStep
from rism.export.families.flux2_reference import literal_capture
from rism.export.prompts import prompt_rules, tokenizer_json
from rism.export.spec import FamilySpec, LiteralCapture, LoadedModel, ModelSpec
from rism.runtime.manifest import Geometry

__all__ = ["FLUX2_KLEIN"]

# l' of the paper is block 20 of 32; other depths keep the proportion.
_FEATURE_DEPTH = 20 / 32
_MAX_ASPECT = 8.0  # as Flux2ImageProcessor.check_image_input

# What the published pipelines take as defaults. A checkpoint of another size says its own in
# a file `rism.json` beside model_index.json.
_DEFAULTS: dict[str, Any] = {
    "name": None,
    "licence": "see the model card",
    "demonstrator": False,
    "size_level": 1024,
    "resize": "shrink",
    "remainder": "crop",
    "max_sequence_length": 512,
    "text_encoder_out_layers": [9, 18, 27],
    "feature_block": None,
    "tau": 0.8,
}


def _settings(folder: Path) -> dict[str, Any]:
    own = read_json(folder / "rism.json") if (folder / "rism.json").exists() else {}
    unknown = sorted(set(own) - set(_DEFAULTS))
    if unknown:
        raise CheckpointError(
            f"{folder / 'rism.json'} has unknown keys {unknown}, expected some of "
            f"{sorted(_DEFAULTS)}: remove them"
        )
    return {**_DEFAULTS, "name": folder.resolve().name, **own}


def _spec(
    settings: dict[str, Any],
    *,
    transformer: Flux2Transformer2DModel,
    vae: AutoencoderKLFlux2,
    tokenizer: PreTrainedTokenizerBase,
) -> ModelSpec:
    config = transformer.config
    vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    blocks = config.num_layers + config.num_single_layers
    width = config.num_attention_heads * config.attention_head_dim
    feature_block = settings["feature_block"]
    return ModelSpec(
        name=settings["name"],
        family=FLUX2_KLEIN,
        licence=settings["licence"],
        demonstrator=settings["demonstrator"],
        geometry=Geometry(
            size_level=settings["size_level"],
            resize=settings["resize"],
            remainder=settings["remainder"],
            multiple_px=2 * vae_factor,
            token_px=2 * vae_factor,
            resample="lanczos",
            max_aspect=_MAX_ASPECT,
            mean=0.5,
            std=0.5,
        ),
        prompt=prompt_rules(tokenizer, max_length=settings["max_sequence_length"]),
        prompt_dim=config.joint_attention_dim,
        latent_channels=config.in_channels,
        double_blocks=config.num_layers,
        single_blocks=config.num_single_layers,
        feature_block=math.floor(_FEATURE_DEPTH * blocks + 0.5)
        if feature_block is None
        else feature_block,
        feature_dim=width,
        tau=settings["tau"],
    )


def load(folder: Path) -> LoadedModel:
    """Load a checkpoint folder in the layout of `Flux2KleinPipeline.save_pretrained`."""
    settings = _settings(folder)
    transformer = load_component(Flux2Transformer2DModel, folder / "transformer")
    vae = load_component(AutoencoderKLFlux2, folder / "vae")
    text = load_component(Qwen3ForCausalLM, folder / "text_encoder")
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True)
    layers = tuple(settings["text_encoder_out_layers"])
    _check_sizes(transformer, vae, text, layers)
    spec = _spec(settings, transformer=transformer, vae=vae, tokenizer=tokenizer)

    def reference_dit(**inputs: Any) -> LiteralCapture:
        return literal_capture(
            transformer,
            feature_block=spec.feature_block,
            timestep=spec.timestep,
            **inputs,
        )

    @torch.no_grad()
    def reference_text(instruction: str) -> torch.Tensor:
        embeds: torch.Tensor = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            text_encoder=text,
            tokenizer=tokenizer,
            prompt=instruction,
            max_sequence_length=spec.prompt.max_length,
            hidden_states_layers=list(layers),
        )
        return embeds

    @torch.no_grad()
    def reference_vae(image: torch.Tensor) -> torch.Tensor:
        latents = vae.encode(image).latent_dist.mode()
        packed = Flux2KleinPipeline._patchify_latents(latents)
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        tokens: torch.Tensor = Flux2KleinPipeline._pack_latents((packed - mean) / std)
        return tokens

    return LoadedModel(
        spec=spec,
        dit=Flux2SingleStep(transformer, FLUX2_KLEIN, timestep=spec.timestep).eval(),
        text_encoder=QwenPromptEncoder(text, layers).eval(),
        vae_encoder=VaeEncoder(vae).eval(),
        tokenizer_json=tokenizer_json(tokenizer),
        reference_dit=reference_dit,
        reference_text=reference_text,
        reference_vae=reference_vae,
    )


def _check_sizes(
    transformer: Flux2Transformer2DModel,
    vae: AutoencoderKLFlux2,
    text: Qwen3ForCausalLM,
    layers: tuple[int, ...],
) -> None:
    """Refuse parts that do not belong together, before anything is traced."""
    wanted, given = transformer.config.joint_attention_dim, len(layers) * text.config.hidden_size
    if wanted != given:
        raise CheckpointError(
            f"the transformer expects prompt embeddings of width {wanted}, the text encoder's "
            f"hidden states {list(layers)} give {given}: the parts are of different models"
        )
    if max(layers) >= text.config.num_hidden_layers or min(layers) < 0:
        raise CheckpointError(
            f"hidden states {list(layers)} are asked for, the text encoder has "
            f"{text.config.num_hidden_layers} blocks: expected smaller numbers in rism.json"
        )
    if transformer.config.in_channels != 4 * vae.config.latent_channels:
        raise CheckpointError(
            f"the transformer takes {transformer.config.in_channels} latent channels, the VAE "
            f"packs {4 * vae.config.latent_channels}: the parts are of different models"
        )
    if transformer.config.guidance_embeds:
        raise CheckpointError(
            "the transformer has a guidance embedding, FLUX.2-klein has none: "
            "FLUX.2-dev is not supported"
        )


FLUX2_KLEIN = FamilySpec(
    name="flux2-klein",
    prompt_axes=(0.0, 0.0, 0.0, "index"),
    noisy_axes=(0.0, "row", "column", 0.0),
    clean_axes=(10.0, "row", "column", 0.0),
    pipelines=("Flux2KleinPipeline",),
    load=load,
)
