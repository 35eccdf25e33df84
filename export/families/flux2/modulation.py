"""FLUX.2's modulation at one timestep: numbers that depend on nothing else, shared by blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2TimestepGuidanceEmbeddings
from torch.nn import functional as F

from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.families.flux2.dit import MODULATIONS


@torch.no_grad()
def fold_modulation(
    store: TensorStore,
    *,
    timestep: float,
    timestep_channels: int,
    width: int,
    layers: Sequence[str] = MODULATIONS,
) -> dict[str, torch.Tensor]:
    """Compute the outputs of modulation layers at `timestep`.

    Args:
        store: the transformer's tensors, under diffusers' names.
        timestep: sigma of the step.
        timestep_channels: size of the sinusoidal embedding.
        width: D.
        layers: their names in the transformer.

    Returns:
        By the layers' names, of `MODULATIONS` (1, 6 D), (1, 6 D) and (1, 3 D) float32.
    """
    embedder = Flux2TimestepGuidanceEmbeddings(
        in_channels=timestep_channels, embedding_dim=width, bias=False, guidance_embeds=False
    )
    embedder.load_state_dict(
        {
            name: store[f"time_guidance_embed.{name}"].read().float()
            for name in embedder.state_dict()
        }
    )
    embedded = F.silu(embedder(torch.tensor([timestep * 1000]), None))
    return {
        name: torch.cat(
            [F.linear(embedded, rows.float()) for rows in store[f"{name}.linear.weight"].chunks()],
            dim=-1,
        )
        for name in layers
    }
