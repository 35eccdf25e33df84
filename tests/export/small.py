"""A small random FLUX.2-klein checkpoint in the published layout, and inputs for its graphs."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from mini.tokenizer import train_tokenizer
from rism.export.spec import ModelSpec

CORPUS = ["remove the red car", "remove the small dog on the left of the green van"] * 20
SETTINGS = {
    "size_level": 96,
    "max_sequence_length": 32,
    "text_encoder_out_layers": [1, 2, 3],
    "feature_block": 2,
    "precision": "fp32",
}


def make_checkpoint(
    folder: Path,
    *,
    text: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    **transformer: object,
) -> Path:
    """Write a random checkpoint with the classes the published one is made of.

    Args:
        folder: where to.
        text: of Qwen3Config, instead of the small sizes.
        settings: of rism.json.
        transformer: of Flux2Transformer2DModel, likewise.
    """
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CORPUS, vocab_size=320)
    language = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    } | dict(text or {})
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 2)
    sizes = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    } | transformer
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**language)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(**sizes),
    )
    pipeline.save_pretrained(folder)
    (folder / "rism.json").write_text(json.dumps(dict(settings or SETTINGS)))
    return folder


def feeds(spec: ModelSpec, grid_hw: tuple[int, int], *, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(grid_hw[0])
    tokens = grid_hw[0] * grid_hw[1]

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "clean_latents": normal(batch, tokens, spec.latent_channels),
        "noise": normal(1, tokens, spec.latent_channels),
        "prompt_embeds": normal(batch, spec.prompt.max_length, spec.prompt_dim),
        "prompt_weights": rng.uniform(0, 1, (batch, spec.prompt.max_length)).astype(np.float32),
        "positions": np.indices(grid_hw, dtype=np.float32).reshape(2, -1).T.copy(),
    }
