"""The reference of Step1X-Edit's transformer: every step as published, every matrix stored.

Written from the makers' description of the model and for comparison alone. It shares no
arithmetic with the modules that are traced, reads its weights under the makers' names with
queries, keys and values in one matrix, and computes in float32 (angles in float64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.families.step1x.reference_blocks import (
    Step1XRecord,
    Weights,
    double_block,
    modulation,
    rotary_turns,
    single_block,
    two_layers,
)
from rism.export.families.step1x.reference_connector import connect, sinusoid
from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.families.step1x.tensor_names import NAMES


@dataclass(frozen=True)
class ReferenceStep1X:
    """Connector and all blocks; the final projection, which nothing is read after, is left out."""

    sizes: Step1XSizes
    weights: Weights

    def __call__(
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
            noise: (1, N_n, C).
            prompt_embeds: (B, N_p, E); the first columns are hidden states.
            prompt_mask: (B, N_p), one or true where there is a token.
            prompt_positions: (N_p, 3).
            noisy_positions: (N_n, 3).
            clean_positions: (N_v, 3).
            timestep: sigma, 1 at the first step.
            extra: (B, N_p, context), added to the connector's tokens.
            feature_block: l'; none by default.
            keep_blocks: keep the whole stream after each block.
        """
        batch, weights, sizes = clean_latents.shape[0], self.weights, self.sizes
        record = Step1XRecord(
            clean=clean_latents.shape[1],
            prompt=prompt_embeds.shape[1],
            feature_block=feature_block,
            keep_blocks=keep_blocks,
        )
        tokens, pooled, vector = self._connect(prompt_embeds, prompt_mask, timestep)
        record.tokens, record.pooled, record.vector = tokens, pooled, vector
        prompt = weights.linear("txt_in", tokens if extra is None else tokens + extra)
        image = torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1)
        hidden = torch.cat([prompt, weights.linear("img_in", image)], dim=1)
        places = torch.cat([prompt_positions, noisy_positions, clean_positions])
        turns = rotary_turns(places, sizes.axes_dims)
        for kind, count, block in (
            ("double_blocks", sizes.double, double_block),
            ("single_blocks", sizes.single, single_block),
        ):
            for index in range(count):
                own = weights.under(f"{kind}.{index}")
                hidden = block(own, sizes.heads, hidden, vector, turns, record)
                record.block(hidden)
        return record

    def modulation(
        self, prompt_embeds: torch.Tensor, prompt_mask: torch.Tensor, timestep: float
    ) -> torch.Tensor:
        """Shift, scale and gate of all sites of all blocks in their order, (B, R).

        In a double-stream block the image's come before the prompt's; the last block's gate is
        left out. Args as those of `__call__`.
        """
        sizes, vector = self.sizes, self._connect(prompt_embeds, prompt_mask, timestep)[2]
        layers = [
            f"double_blocks.{index}.{stream}_mod"
            for index in range(sizes.double)
            for stream in ("img", "txt")
        ]
        layers += [f"single_blocks.{index}.modulation" for index in range(sizes.single)]
        rows = [modulation(self.weights.under(layer), vector, 1)[0][:, 0] for layer in layers]
        return torch.cat(rows, dim=-1)[:, : -sizes.width]

    def _connect(
        self, prompt_embeds: torch.Tensor, prompt_mask: torch.Tensor, timestep: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the prompt's tokens, its pooled vector, and what all modulation is made of."""
        weights, sizes = self.weights, self.sizes
        states = prompt_embeds[..., : sizes.connector.hidden].float()
        tokens, pooled = connect(
            weights.under("connector"), sizes.connector, states, timestep, prompt_mask
        )
        steps = sinusoid(1000.0 * timestep)
        time = two_layers(weights, "time_in.in_layer", "time_in.out_layer", steps)
        vector = two_layers(weights, "vector_in.in_layer", "vector_in.out_layer", pooled)
        return tokens, pooled, time + vector


def makers_tensors(store: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, ...]]:
    """Return a checkpoint's tensors under the makers' names, each in one or several parts.

    Args:
        store: in the makers' layout or that of diffusers.
    """
    if "img_in.weight" in store:
        return {name: (tensor,) for name, tensor in store.items()}
    names = NAMES.makers_names(store)
    return {name: tuple(store[part] for part in parts) for name, parts in names.items()}
