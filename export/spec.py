"""Everything that differs between model families and checkpoints, as data.

The rest of the exporter asks these objects and never a model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from rism.export.capture import Capture
from rism.runtime.manifest import Geometry, PromptRules

__all__ = ["Axis", "FamilySpec", "LiteralCapture", "LoadedModel", "ModelSpec", "SingleStepDiT"]

# One rotary axis of a token's position: a constant, or what the token's own index gives.
Axis = float | str
"""A number, "row", "column" (image tokens) or "index" (prompt tokens)."""


@dataclass(frozen=True)
class FamilySpec:
    """A family of editing transformers with joint attention over [prompt; noisy; clean].

    Attributes:
        name: as in the manifest.
        prompt_axes, noisy_axes, clean_axes: rotary position of each kind of token.
        pipelines: names of the diffusers pipelines that hold such a model.
        load: reads a checkpoint folder in diffusers' layout.
    """

    name: str
    prompt_axes: tuple[Axis, ...]
    noisy_axes: tuple[Axis, ...]
    clean_axes: tuple[Axis, ...]
    pipelines: tuple[str, ...]
    load: Callable[[Path], LoadedModel]


@dataclass(frozen=True)
class ModelSpec:
    """One checkpoint: sizes and defaults that go into the manifest."""

    name: str
    family: FamilySpec
    licence: str
    demonstrator: bool
    geometry: Geometry
    prompt: PromptRules
    prompt_dim: int
    latent_channels: int
    double_blocks: int
    single_blocks: int
    feature_block: int
    feature_dim: int
    tau: float = 0.8
    timestep: float = 1.0

    @property
    def blocks(self) -> int:
        """N_l, counted over double-stream blocks, then single-stream blocks."""
        return self.double_blocks + self.single_blocks

    @property
    def noise_rows(self) -> int:
        """Tokens of the largest picture the geometry allows."""
        return (self.geometry.size_level // self.geometry.token_px) ** 2


class SingleStepDiT(Protocol):
    """A transformer's single step: calls `capture` from every block, returns nothing else."""

    def __call__(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        positions: torch.Tensor,
        capture: Capture,
    ) -> None:
        """Run the step on (B, N_v, C), (1, N_v, C), (B, N_p, E) and (N_v, 2) float32."""
        ...


@dataclass(frozen=True)
class LiteralCapture:
    """The same quantities from the untouched PyTorch model, every attention matrix stored."""

    attention_vectors: torch.Tensor  # (B, L, N_v)
    transition_matrices: torch.Tensor  # (B, L, N_v, N_v)
    features: Mapping[str, torch.Tensor]  # by site, (B, N_v, D)
    token_attention: torch.Tensor  # (B, N_v, N_p)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory: modules to trace, and the originals to compare them with."""

    spec: ModelSpec
    dit: nn.Module  # a SingleStepDiT
    text_encoder: nn.Module  # (input_ids, attention_mask) to prompt_embeds
    vae_encoder: nn.Module  # image to clean_latents
    tokenizer_json: str
    reference_dit: Callable[..., LiteralCapture]
    reference_text: Callable[[str], torch.Tensor]
    reference_vae: Callable[[torch.Tensor], torch.Tensor]
