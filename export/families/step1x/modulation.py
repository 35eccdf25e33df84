"""Step1X-Edit's modulation: shift, scale and gate of every block, for one prompt at one timestep.

It depends on the mean of the prompt's hidden states and on the timestep, and on no image: a graph
of its own computes it once per prompt. Its layers are a quarter of the transformer's weights.
Names are those of the diffusers layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

import torch
from torch import nn
from torch.nn import functional as F

from rism.export.families.step1x.connector import masked_mean, two_layers
from rism.export.families.step1x.sizes import Step1XSizes

INTO_STREAM = ("norm.linear", "norm1.linear", "norm1_context.linear")
"""Layers whose results multiply into the residual stream."""


def modulation_widths(sizes: Step1XSizes) -> list[int]:
    """Return how many numbers each block takes; the last one has no gate."""
    parts = [12] * sizes.double + [3] * (sizes.single - 1) + [2]
    return [part * sizes.width for part in parts]


def rows_of_blocks(modulation: torch.Tensor, sizes: Step1XSizes) -> list[torch.Tensor]:
    """Cut the modulation (B, R) into what each block takes, in their order."""
    ends = accumulate(modulation_widths(sizes), initial=0)
    return [modulation[:, start:end] for start, end in pairwise(ends)]


def take_modulation(blocks: Iterable[nn.Module]) -> None:
    """Have blocks of diffusers take their modulation in the place of the vector it is made of.

    Args:
        blocks: changed in place: `temb` of a double-stream block is (B, 12 D), image before
            prompt, that of a single-stream block (B, 3 D).
    """
    for block in blocks:
        names = [name for name in ("norm", "norm1", "norm1_context") if hasattr(block, name)]
        for part, name in enumerate(names):
            norm = block.get_submodule(name)
            norm.silu = nn.Identity()
            norm.linear = _Part(part, len(names)) if len(names) > 1 else nn.Identity()


class _Part(nn.Module):
    """One of several equal runs of columns."""

    def __init__(self, part: int, count: int) -> None:
        super().__init__()
        self.part, self.count = part, count

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.chunk(self.count, dim=-1)[self.part]


class Step1XModulation(nn.Module):
    """All layers of the modulation; the last block's gate, which nothing needs, is left out.

    Args:
        sizes: of the model.
        constants: "time", the timestep's part of what the layers take, (1, D) float32.
    """

    time: torch.Tensor

    def __init__(self, sizes: Step1XSizes, constants: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        width, pooled = sizes.width, sizes.connector.pooled
        self.hidden = sizes.connector.hidden
        self.connector = _Pooled(self.hidden, pooled, scaled=sizes.scaled)
        self.vec_embed = two_layers("in_layer", "out_layer", pooled, width, width)
        self.transformer_blocks = nn.ModuleList(
            _layers(width, norm1=6, norm1_context=6) for _ in range(sizes.double)
        )
        self.single_transformer_blocks = nn.ModuleList(
            _layers(width, norm=3 if index < sizes.single - 1 else 2)
            for index in range(sizes.single)
        )
        self.register_buffer("time", constants.get("time"), persistent=False)

    def forward(self, prompt_embeds: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
        """Compute the modulation (B, R) float32 of all blocks in their order.

        Args:
            prompt_embeds: (B, N_p, E); the first columns are hidden states.
            prompt_mask: (B, N_p) float32, one where there is a token.
        """
        pooled = self.connector(prompt_embeds[..., : self.hidden], prompt_mask)
        vector = F.silu(self.time + self.vec_embed(pooled))
        blocks = [*self.transformer_blocks, *self.single_transformer_blocks]
        rows = [
            norm.get_submodule("linear")(vector) for block in blocks for norm in block.children()
        ]
        return torch.cat(rows, dim=-1).float()


class _Pooled(nn.Module):
    """The connector's pooled vector (B, V); its mean has a factor in version 1.0."""

    def __init__(self, hidden: int, pooled: int, *, scaled: bool) -> None:
        super().__init__()
        self.global_proj_out = nn.Linear(hidden, pooled)
        self.scale_factor = nn.Parameter(torch.zeros(1)) if scaled else None

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mean = masked_mean(hidden, mask)
        pooled = mean if self.scale_factor is None else mean * (1 + self.scale_factor.float())
        found: torch.Tensor = self.global_proj_out(pooled.to(hidden.dtype))
        return found


def _layers(width: int, **parts: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            name: nn.ModuleDict({"linear": nn.Linear(width, count * width)})
            for name, count in parts.items()
        }
    )
