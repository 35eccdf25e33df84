"""What the exporter knows of a checkpoint, and what an opened model gives it.

The rest of the exporter reads these objects and never asks for a model by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rism.export.attention_capture import Capture
from rism.export.checkpoint.meta_modules import Part
from rism.export.family import FamilySpec
from rism.export.precision import Precision
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.bundle.prompt_spec import PromptRules

RgbImage = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass(frozen=True)
class ModelSpec:
    """One checkpoint: sizes and defaults that go into the manifest.

    `text_dim` is the text encoder's width, `prompt_dim` that of what the transformer gets of it.
    """

    name: str
    family: FamilySpec
    licence: str
    demonstrator: bool
    geometry: Geometry
    prompt: PromptRules
    text_dim: int
    prompt_dim: int
    latent_channels: int
    double_blocks: int
    single_blocks: int
    feature_block: int
    feature_dim: int
    prompt_mask: bool = False  # whether the transformer takes a mask of the prompt's tokens
    tau: float = 0.8
    timestep: float = 1.0
    confidence: Mapping[str, float] | None = (
        None  # rism.runtime.bundle.confidence_rule.ConfidenceRule
    )
    scope: Mapping[str, Any] | None = None  # of a demonstrator, rism.runtime.bundle.scope.Scope
    capture_blocks: tuple[int, ...] | None = None  # blocks that attention is read from; all
    noisy_grid: int = 1  # only every such row and column of the image has noisy tokens

    @property
    def blocks(self) -> int:
        """N_l, counted over double-stream blocks, then single-stream blocks."""
        return self.double_blocks + self.single_blocks

    @property
    def noise_rows(self) -> int:
        """Tokens of the largest image the geometry allows."""
        rules = self.geometry
        token, level = rules.token_px, rules.size_level
        if rules.sizes:
            return max(wide // token * (high // token) for wide, high in rules.sizes)
        if rules.rounding == "floor":
            return (level // token) ** 2
        # Each side is at most a pixel longer, and the shorter one as much again as it follows the
        # longer; what that adds to the area is largest at one end of the aspect ratios.
        root = math.sqrt(rules.max_aspect)
        return int(level**2 + level * max(3.0, root + 2 / root) + 2) // token**2

    def at_level(self, size_level: int) -> ModelSpec:
        """Return it with every image brought to about `size_level` squared, as the paper does.

        The aspect ratio is kept and both sides are cut to whole tokens, without a border.
        """
        rules = replace(
            self.geometry, size_level=size_level, resize="always", remainder="stretch", sizes=()
        )
        return replace(self, geometry=rules)

    def at_sizes(self, sizes_wh: Sequence[tuple[int, int]]) -> ModelSpec:
        """Return it with graphs of fixed sizes only."""
        return replace(self, geometry=replace(self.geometry, sizes=tuple(sizes_wh)))

    def of_blocks(self, double: int, single: int) -> ModelSpec:
        """Return it for a model of so many of its blocks, features of the first."""
        return replace(
            self, double_blocks=double, single_blocks=single, feature_block=0, capture_blocks=None
        )

    def with_template(self, template: str) -> ModelSpec:
        """Return it with another instruction template."""
        return replace(self, prompt=replace(self.prompt, template=template))


@dataclass(frozen=True)
class PromptTokens:
    """The encoded prompt, as the transformer takes it."""

    embeds: torch.Tensor  # (B, N_p, E)
    mask: torch.Tensor | None = None  # (B, N_p) float32, one where there is a token
    positions: torch.Tensor | None = None  # (N_p, axes) float32
    modulation: torch.Tensor | None = None  # (B, R) float32, where a graph of its own makes it


class SingleStepDiT(Protocol):
    """A transformer's single step: calls `capture` from every block, returns nothing else.

    `modulation_dim` is R where a graph of its own makes the modulation from the prompt, else 0.
    """

    modulation_dim: int

    def __call__(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt: PromptTokens,
        noisy_positions: torch.Tensor,
        positions: torch.Tensor,
        capture: Capture,
    ) -> None:
        """Run the step.

        Args:
            clean_latents: (B, N_v, C).
            noise: (1, N_n, C).
            prompt: the encoded prompt.
            noisy_positions: (N_n, 2) float32, row and column of each noisy token.
            positions: (N_v, 2) float32, of each clean token.
            capture: what is read on the way.
        """
        ...


@dataclass(frozen=True)
class ReferenceCapture:
    """The captured quantities, computed by the reference from stored attention matrices."""

    attention_vectors: torch.Tensor  # (B, L, N_v)
    transition_matrices: torch.Tensor  # (B, L, N_v, N_v)
    features: Mapping[str, torch.Tensor]  # by site, (B, N_v, D)
    token_attention: torch.Tensor  # (B, L, N_v, N_p)

    @classmethod
    def of(
        cls,
        to_prompt: list[torch.Tensor],
        to_clean: list[torch.Tensor],
        features: Mapping[str, torch.Tensor],
        prompt_weights: torch.Tensor,
    ) -> ReferenceCapture:
        """Equations 3 and 4 on each block's A_vp (B, N_v, N_p) and A_vv (B, N_v, N_v)."""
        prompt, clean = torch.stack(to_prompt, dim=1), torch.stack(to_clean, dim=1)
        return cls(
            attention_vectors=(prompt @ prompt_weights[:, None, :, None])[..., 0],
            transition_matrices=clean / clean.sum(-1, keepdim=True),
            features=features,
            token_attention=prompt,
        )


class ReferenceModel(Protocol):
    """The reference PyTorch model in float32 on weights rounded as the bundle stores them.

    Each function loads its part of the model when it is called, and frees it afterwards.
    """

    def text(self, instructions: Sequence[str], image_hwc: RgbImage) -> list[ReferencePrompt]:
        """Encode instructions about an image at the model's size, as the pipeline does."""
        ...

    def image_embeds(self, image_hwc: RgbImage) -> torch.Tensor | None:
        """Embeddings of an image's tokens, (V, E); None where the text encoder sees no image."""
        ...

    def vae_latents(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images (1, 3, H, W) in [-1, 1] to latents (1, N_v, C), likewise."""
        ...

    def dit(self, inputs: Sequence[ReferenceInputs], feature_block: int) -> list[ReferenceCapture]:
        """Run the whole transformer on each input."""
        ...


@dataclass(frozen=True)
class ReferencePrompt:
    """One encoded instruction, as the pipeline gives it to its transformer."""

    embeds: torch.Tensor  # (N_p, E)
    mask: torch.Tensor | None = None  # (N_p,) float32
    positions: torch.Tensor | None = None  # (N_p, axes) float32
    modulation: torch.Tensor | None = None  # (R,) float32


@dataclass(frozen=True)
class ReferenceInputs:
    """The inputs of the reference transformer."""

    clean_latents: torch.Tensor  # (B, N_v, C)
    noise: torch.Tensor  # (1, N_n, C), of the noisy tokens
    prompt: PromptTokens
    prompt_weights: torch.Tensor  # (B, N_p)
    grid_hw: tuple[int, int]
    # Where on the grid the noisy tokens are: (N_n,) int64, or all.
    noisy_tokens: torch.Tensor | slice = field(default_factory=lambda: slice(None))


class OpenModel(Protocol):
    """A checkpoint whose configuration was read and checked; weights are read on demand."""

    spec: ModelSpec
    default_precision: str

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as a `tokenizers` file."""
        ...

    def text_encoder(self, precision: Precision) -> Part:
        """Token ids to prompt_embeds; inputs as docs/bundle.md, step 4, has them."""
        ...

    def vision_encoder(self, precision: Precision) -> Part | None:
        """(pixel_values, patch_positions) to image_embeds; None where there is none."""
        ...

    def vae_encoder(self, precision: Precision) -> Part:
        """The image to clean_latents."""
        ...

    def transformer(self, precision: Precision) -> Part:
        """A `SingleStepDiT`."""
        ...

    def modulation(self, precision: Precision) -> Part | None:
        """(prompt_embeds, prompt_mask) to the transformer's modulation, (B, R) float32.

        None where the modulation does not depend on the prompt, or is in the transformer.
        """
        ...

    def reference(self, precision: Precision) -> ReferenceModel:
        """The model that the graphs are compared with."""
        ...

    def first_blocks(self, count: int) -> OpenModel:
        """Return the model of the first blocks alone, the double-stream ones and more.

        What its last block gives out is never computed: only its attention is read.
        """
        ...

    def samples_of_blocks(self) -> Sequence[OpenModel]:
        """Return models of a few of this one's blocks, at least one of every kind.

        They are for machines that cannot hold the whole; weights keep their names, so their
        graphs run on the weights of the bundle.
        """
        ...
