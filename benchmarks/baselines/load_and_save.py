"""Baseline: a checkpoint loaded whole by the libraries it was made for, and saved again.

Source: `from_pretrained` and `save_pretrained` of diffusers and transformers. Every exporter that
holds its model in PyTorch does at least this, before it traces anything.

`python -m benchmarks.baselines.load_and_save CHECKPOINT FOLDER` is one process of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3ForCausalLM

_PARTS = {
    "transformer": Flux2Transformer2DModel,
    "vae": AutoencoderKLFlux2,
    "text_encoder": Qwen3ForCausalLM,
}


def load_and_save(checkpoint: Path, folder: Path) -> None:
    """Load every part as it is stored, all of them at a time, and save each.

    Args:
        checkpoint: a folder in diffusers' layout.
        folder: to make.
    """
    with torch.no_grad():
        parts = {
            name: kind.from_pretrained(checkpoint / name, torch_dtype="auto")
            for name, kind in _PARTS.items()
        }
        for name, module in parts.items():
            module.save_pretrained(folder / name)


if __name__ == "__main__":
    load_and_save(Path(sys.argv[1]), Path(sys.argv[2]))
