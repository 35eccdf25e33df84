"""The reference of Step1X-Edit's transformer: every step as published, every matrix stored.

Written from the makers' description of the model and for comparison alone. It shares no
arithmetic with the modules that are traced, holds its parameters under the makers' names with
queries, keys and values in one matrix, and computes in float32 (angles in float64).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from rism.export.checkpoint.layer_streaming import stream_weights
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.checkpoint.safetensors_store import AnyStored, StackedTensor, StoredTensor
from rism.export.families.step1x.names import NAMES
from rism.export.families.step1x.reference_blocks import (
    DoubleBlock,
    SingleBlock,
    Step1XRecord,
    TwoLayers,
    rotary_turns,
)
from rism.export.families.step1x.reference_connector import ReferenceConnector, sinusoid
from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.precision import Precision

__all__ = ["ReferenceStep1X", "Step1XRecord", "makers_tensors", "open_reference"]


class ReferenceStep1X(nn.Module):
    """Connector and all blocks; the final projection, which nothing is read after, is left out."""

    def __init__(self, sizes: Step1XSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.img_in = nn.Linear(sizes.in_channels, sizes.width)
        self.time_in = TwoLayers(256, sizes.width)
        self.vector_in = TwoLayers(sizes.connector.pooled, sizes.width)
        self.txt_in = nn.Linear(sizes.context, sizes.width)
        self.double_blocks = nn.ModuleList(DoubleBlock(sizes) for _ in range(sizes.double))
        self.single_blocks = nn.ModuleList(SingleBlock(sizes) for _ in range(sizes.single))
        self.connector = ReferenceConnector(sizes.connector, scaled=sizes.scaled)
        if sizes.mapping:
            self.text_token_mapping = nn.Linear(sizes.connector.hidden, sizes.mapping)

    def map_quoted(self, embeds: torch.Tensor, quoted: torch.Tensor) -> torch.Tensor:
        """Return what quoted tokens add to the connector's output, as `extra` of `forward`.

        Args:
            embeds: of the language model's table, (B, N_p, E).
            quoted: (B, N_p), one where a token stands in quotation marks.
        """
        mapped: torch.Tensor = self.text_token_mapping(embeds)
        return mapped * quoted[..., None].float()

    def forward(
        self,
        clean_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        prompt_mask: torch.Tensor,
        prompt_positions: torch.Tensor,
        noisy_positions: torch.Tensor,
        clean_positions: torch.Tensor,
        timestep: float,
        extra: torch.Tensor | None = None,
        *,
        feature_block: int = -1,
        keep_blocks: bool = False,
    ) -> Step1XRecord:
        """Run everything on [prompt; noisy; clean].

        Args:
            clean_latents: (B, N_v, C).
            noise: (1, N_v, C).
            prompt_embeds: (B, N_p, E); the first columns are hidden states.
            prompt_mask: (B, N_p), one or true where there is a token.
            prompt_positions: (N_p, 3).
            noisy_positions: (N_v, 3).
            clean_positions: (N_v, 3).
            timestep: sigma, 1 at the first step.
            extra: (B, N_p, context), added to the connector's tokens.
            feature_block: l'; none by default.
            keep_blocks: keep the whole stream after each block.
        """
        batch = clean_latents.shape[0]
        record = Step1XRecord(
            clean=clean_latents.shape[1],
            prompt=prompt_embeds.shape[1],
            feature_block=feature_block,
            keep_blocks=keep_blocks,
        )
        states = prompt_embeds[..., : self.sizes.connector.hidden].float()
        tokens, pooled = self.connector(states, timestep, prompt_mask)
        vector = self.time_in(sinusoid(1000.0 * timestep)) + self.vector_in(pooled)
        record.tokens, record.pooled, record.vector = tokens, pooled, vector
        prompt = self.txt_in(tokens if extra is None else tokens + extra)
        image = torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1)
        hidden = torch.cat([prompt, self.img_in(image)], dim=1)
        places = torch.cat([prompt_positions, noisy_positions, clean_positions])
        turns = rotary_turns(places, self.sizes.axes_dims)
        for block in [*self.double_blocks, *self.single_blocks]:
            hidden = block(hidden, vector, turns, record)
            record.block(hidden)
        return record


def open_reference(
    sizes: Step1XSizes,
    tensors: Mapping[str, AnyStored],
    precision: Precision,
    *,
    exact: tuple[str, ...] = (),
) -> ReferenceStep1X:
    """Build the model; each layer reads its weights from the checkpoint when it runs.

    Args:
        sizes: of the checkpoint.
        tensors: by the makers' names (`makers_tensors`).
        precision: weights are rounded to what it stores.
        exact: beginnings of names that are not rounded.
    """
    model = build_empty(lambda: ReferenceStep1X(sizes))
    stream_weights(model, tensors, precision, exact=exact)
    return model


def makers_tensors(store: Mapping[str, StoredTensor]) -> dict[str, AnyStored]:
    """Return a checkpoint's tensors under the makers' names.

    Args:
        store: in the makers' layout or that of diffusers.
    """
    if "img_in.weight" in store:
        return {name: store[name] for name in store if not name.startswith("final_layer.")}
    found: dict[str, AnyStored] = {}
    for name, parts in NAMES.makers_names(store).items():
        stored = tuple(store[part] for part in parts)
        found[name] = stored[0] if len(stored) == 1 else StackedTensor(stored)
    return found
