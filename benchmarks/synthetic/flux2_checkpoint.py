"""A FLUX.2-klein checkpoint of random bfloat16 weights, in the published layout and sizes.

Real weights are not needed to measure an export: the same files, names, shapes, types and
shards are. Published sizes: 4B has 5 + 20 blocks of width 3,072 and a Qwen3-4B, 9B has 8 + 24
of width 4,096 and a Qwen3-8B.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.synthetic.sparse_files import write_sparse

__all__ = ["SIZES", "Shape", "write_checkpoint", "write_configuration"]

MINI = Path(__file__).parents[2] / "export" / "builtin" / "mini"
_SHARD_BYTES = 1_500_000_000
_POOL = 64 * 2**20


@dataclass(frozen=True)
class Shape:
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
    "4b": Shape(5, 20, 24, 128, text_hidden=2560, text_intermediate=9728, tied=True),
    "9b": Shape(8, 24, 32, 128, text_hidden=4096, text_intermediate=12288),
}


def write_checkpoint(folder: Path, shape: Shape, *, seed: int | None = 0) -> None:
    """Write a checkpoint; a shard is the most that is held in memory.

    Args:
        folder: must not exist.
        shape: sizes of the model.
        seed: of the weights; None for sparse files (`benchmarks.synthetic.sparse_files`).
    """
    parts = write_configuration(folder, shape)
    if seed is None:
        for part, module in parts.items():
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            shapes = {
                name: tuple(meta.shape)
                for name, meta in _tensors(module, shape)
                if not name.endswith("num_batches_tracked")
            }
            write_sparse(folder / part / f"{stem}.safetensors", shapes)
        return
    pool = torch.empty(_POOL, dtype=torch.bfloat16).normal_(
        generator=torch.Generator().manual_seed(seed)
    )
    for part, module in parts.items():
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        _write_shards(folder / part, stem, _tensors(module, shape), pool)


def write_configuration(folder: Path, shape: Shape) -> dict[str, torch.nn.Module]:
    """Write everything but the weights.

    Args:
        folder: must not exist.
        shape: sizes of the model.

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


def _tensors(module: torch.nn.Module, shape: Shape) -> list[tuple[str, torch.Tensor]]:
    tied = ("lm_head.weight",) if shape.tied else ()
    return [(name, meta) for name, meta in module.state_dict().items() if name not in tied]


def _write_shards(
    folder: Path, stem: str, tensors: list[tuple[str, torch.Tensor]], pool: torch.Tensor
) -> None:
    shards = list(_shards(tensors))
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = f"{stem}.safetensors"
        if len(shards) > 1:
            file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        metas = dict(tensors)
        save_file(
            {name: _random(name, metas[name], pool) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        places |= dict.fromkeys(names, file)
        total += sum(2 * metas[name].numel() for name in names)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _shards(tensors: list[tuple[str, torch.Tensor]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, meta in tensors:
        nbytes = 2 * meta.numel()
        if names and size + nbytes > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def _random(name: str, meta: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """Numbers as a trained model has them: unit gain through a layer, scales near one."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    count = meta.numel()
    start = hash(tuple(name.encode())) % (pool.numel() // 2)
    repeats = -(-(count + start) // pool.numel())
    flat = (pool.repeat(repeats) if repeats > 1 else pool)[start : start + count]
    scale = 0.02 if meta.ndim < 2 else 1 / math.sqrt(meta[0].numel())
    values = (flat * scale).reshape(meta.shape)
    one = name.endswith(("norm.weight", "norm_q.weight", "norm_k.weight", "running_var"))
    if one or (meta.ndim == 1 and "norm" in name and name.endswith("weight")):
        values = 1 + values.abs()
    return values.contiguous()
