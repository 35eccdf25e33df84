"""A small random FLUX.2-klein checkpoint in the published layout, and its bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from diffusers import (  # noqa: E402
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from mini.tokenizer import train_tokenizer  # noqa: E402
from rism.export import ExportOptions, ExportReport, export_bundle  # noqa: E402

CORPUS = ["remove the red car", "remove the small dog on the left of the green van"] * 20
SETTINGS = {
    "size_level": 96,
    "max_sequence_length": 32,
    "text_encoder_out_layers": [1, 2, 3],
    "feature_block": 2,
    "precision": "fp32",
}


def make_checkpoint(folder: Path, **transformer: object) -> Path:
    """Write a random checkpoint with the classes the published one is made of."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CORPUS, vocab_size=320)
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
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
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(**sizes),
    )
    pipeline.save_pretrained(folder)
    (folder / "rism.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-klein")


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The checkpoint as a bundle with all three capture modes and per-token attention."""
    output = tmp_path_factory.mktemp("bundles") / "tiny"
    options = ExportOptions(captures=("vectors", "matrices", "scores"), token_attention=True)
    return export_bundle(str(checkpoint), output, options)
