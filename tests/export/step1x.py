"""Small random Step1X-Edit checkpoints in the published layouts, and inputs for their graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.random_step1x import SMALL, write_diffusers, write_original
from rism.export.checkpoint import find_checkpoint
from rism.export.families import FAMILIES
from rism.export.families.step1x import Step1XModel
from rism.export.spec import LiteralInputs, ModelSpec, PromptTokens
from rism.export.tensors import read_headers

# Sizes for a CPU; the text before an instruction has about its published number of tokens.
SETTINGS = {
    "size_level": 96,
    "max_sequence_length": 96,
    "min_pixels": 16 * 28 * 28,
    "max_pixels": 36 * 28 * 28,
    "precision": "fp32",
}
DROP = {"1.0": 210, "1.1": 210, "1.2": 88}
VERSIONS = ("1.0", "1.1", "1.2")


def make_step1x(
    folder: Path,
    version: str,
    *,
    layout: str | None = None,
    settings: dict[str, object] | None = None,
) -> Path:
    """Write a checkpoint: 1.0 and 1.1 as their makers do, 1.2 as diffusers does, unless told."""
    layout = layout or ("diffusers" if version == "1.2" else "original")
    own: dict[str, object] = SETTINGS | {"drop_tokens": DROP[version]}
    if layout == "original":
        write_original(folder, SMALL, version=version)
        own["connector_heads"] = SMALL.connector_heads
    else:
        write_diffusers(folder, SMALL, version=version)
    (folder / "rism.json").write_text(json.dumps(own | (settings or {})))
    return folder


def open_step1x(path: Path) -> Step1XModel:
    """Open a checkpoint by the version that its files say."""
    checkpoint = find_checkpoint(str(path))
    if checkpoint.transformer_file is not None:
        headers = read_headers(checkpoint.transformer_file)
        family = next(f for f in FAMILIES if f.owns(checkpoint.transformer_file, headers))
    else:
        name = json.loads((path / "model_index.json").read_text())["_class_name"]
        family = next(f for f in FAMILIES if name in f.pipelines)
    model = family.open(checkpoint)
    assert isinstance(model, Step1XModel)
    return model


def literal_inputs(spec: ModelSpec, grid_hw: tuple[int, int], *, batch: int = 2) -> LiteralInputs:
    """Random latents and prompts; the second prompt is shorter where there is padding."""
    generator = torch.Generator().manual_seed(grid_hw[0])
    tokens, padded = grid_hw[0] * grid_hw[1], spec.prompt.padding == "zeros"
    length = spec.prompt.max_length if padded else 21

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    embeds, mask = normal(batch, length, spec.prompt_dim), torch.ones(batch, length)
    if padded:
        mask[0, 30:] = 0
        mask[1:, 17:] = 0
        embeds = embeds * mask.unsqueeze(-1)
    positions = normal(length, 3) * 9 if spec.prompt.positions == "grid" else None
    return LiteralInputs(
        clean_latents=normal(batch, tokens, spec.latent_channels),
        noise=normal(1, tokens, spec.latent_channels),
        prompt=PromptTokens(embeds, mask, positions),
        prompt_weights=torch.rand((batch, length), generator=generator),
        grid_hw=grid_hw,
    )


def picture(width: int, height: int) -> np.ndarray:
    """Something to look at: (H, W, 3) uint8."""
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    return np.ascontiguousarray(coarse[rows][:, columns])
