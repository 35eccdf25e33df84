"""A FLUX.2-klein checkpoint of random bfloat16 weights, in the published layout and sizes.

Published sizes: 4B has 5 + 20 blocks of width 3,072 and a Qwen3-4B, 9B has 8 + 24
of width 4,096 and a Qwen3-8B.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.synthetic.tensor_files import RandomNumbers, tensors_nbytes, unchanged, write_shards

MINI = Path(__file__).parents[2] / "export" / "builtin" / "mini"
_SHARD_BYTES = 1_500_000_000


@dataclass(frozen=True)
class KleinShape:
    """What tells one published size from another; the rest is the same for all."""

    double: int
    single: int
    heads: int
    head_dim: int
    text_hidden: int
    text_intermediate: int
    text_blocks: int = 36
    text_heads: int = 32
    text_kv_heads: int = 8
    text_head_dim: int = 128
    vocabulary: int = 151936
    tied: bool = False

    def transformer(self) -> dict[str, Any]:
        """Arguments of `Flux2Transformer2DModel`."""
        return {
            "in_channels": 128,
            "num_layers": self.double,
            "num_single_layers": self.single,
            "attention_head_dim": self.head_dim,
            "num_attention_heads": self.heads,
            "joint_attention_dim": 3 * self.text_hidden,
            "axes_dims_rope": [self.head_dim // 4] * 4,
            "guidance_embeds": False,
        }

    def text(self) -> Qwen3Config:
        """Configuration of the language model."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.text_hidden,
            intermediate_size=self.text_intermediate,
            num_hidden_layers=self.text_blocks,
            num_attention_heads=self.text_heads,
            num_key_value_heads=self.text_kv_heads,
            head_dim=self.text_head_dim,
            max_position_embeddings=40960,
            rope_theta=1_000_000,
            tie_word_embeddings=self.tied,
        )


SIZES = {
    "4b": KleinShape(5, 20, 24, 128, text_hidden=2560, text_intermediate=9728, tied=True),
    "9b": KleinShape(8, 24, 32, 128, text_hidden=4096, text_intermediate=12288),
}


def write_checkpoint(folder: Path, shape: KleinShape, *, seed: int | None = 0) -> None:
    """Write a checkpoint into a new folder; without a seed, of sparse files."""
    numbers = None if seed is None else RandomNumbers(seed)
    for part, module in write_configuration(folder, shape).items():
        shapes = {name: tuple(meta.shape) for name, meta in module.state_dict().items()}
        if shape.tied:
            shapes.pop("lm_head.weight", None)
        tensors = unchanged(shapes)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        count = math.ceil(tensors_nbytes(tensors, "BF16") / _SHARD_BYTES)
        write_shards(folder / part, stem, tensors, count, numbers)


def write_configuration(folder: Path, shape: KleinShape) -> dict[str, torch.nn.Module]:
    """Write everything but the weights.

    Returns:
        The parts' modules by their folders, on the meta device.
    """
    folder.mkdir(parents=True)
    index = json.loads((MINI / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    shutil.copytree(MINI / "tokenizer", folder / "tokenizer")
    shutil.copytree(MINI / "scheduler", folder / "scheduler")
    with init_empty_weights():
        parts = {
            "transformer": Flux2Transformer2DModel.from_config(shape.transformer()),
            "vae": AutoencoderKLFlux2(),
            "text_encoder": Qwen3ForCausalLM(shape.text()),
        }
    for part, module in parts.items():
        (folder / part).mkdir()
        language = part == "text_encoder"
        config = module.config.to_dict() if language else dict(module.config)
        name = type(module).__name__
        config |= {"architectures": [name]} if language else {"_class_name": name}
        (folder / part / "config.json").write_text(json.dumps(config, indent=1, default=list))
    return parts
