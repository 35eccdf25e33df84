"""The reference form of Step1X-Edit's transformer: every step as published, every matrix stored.

Written from the makers' description of the model and for comparison alone. It shares nothing
with the modules that are traced, holds its parameters under the makers' names with queries, keys
and values in one matrix, and computes in float32 (angles in float64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from rism.export.checkpoint.layer_streaming import stream_weights
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.checkpoint.safetensors_store import AnyStored, StackedTensor, StoredTensor
from rism.export.families.step1x.reference_blocks import (
    DoubleBlock,
    SingleBlock,
    Step1XRecord,
    Step1XSizes,
    TwoLayers,
    rotary_turns,
)
from rism.export.families.step1x.reference_connector import ReferenceConnector, sinusoid
from rism.export.precision import Precision
from rism.export.spec import ReferenceCapture

__all__ = [
    "ReferenceStep1X",
    "Step1XRecord",
    "Step1XSizes",
    "makers_names",
    "makers_sizes",
    "makers_tensors",
    "open_reference",
    "reference_step1x",
]

Names = Mapping[str, tuple[str, ...]]

# Modules by the makers' names, and what diffusers calls them: several where rows were divided.
_ENDS: Names = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_embed.in_layer",),
    "time_in.out_layer": ("time_embed.out_layer",),
    "vector_in.in_layer": ("vec_embed.in_layer",),
    "vector_in.out_layer": ("vec_embed.out_layer",),
}
_DOUBLE: Names = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_DOUBLE_SCALES = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_SINGLE: Names = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_SCALES = {
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}
_SAME = ("connector.", "text_token_mapping.")


class ReferenceStep1X(nn.Module):
    """Connector and all blocks; the final projection, which nothing is read after, is left out."""

    def __init__(self, sizes: Step1XSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.img_in = nn.Linear(sizes.in_channels, sizes.width)
        self.time_in = TwoLayers(256, sizes.width)
        self.vector_in = TwoLayers(sizes.vector_dim, sizes.width)
        self.txt_in = nn.Linear(sizes.context_dim, sizes.width)
        self.double_blocks = nn.ModuleList(DoubleBlock(sizes) for _ in range(sizes.double))
        self.single_blocks = nn.ModuleList(SingleBlock(sizes) for _ in range(sizes.single))
        self.connector = ReferenceConnector(
            inputs=sizes.connector_in,
            width=sizes.context_dim,
            heads=sizes.connector_heads,
            depth=sizes.connector_depth,
            pooled=sizes.vector_dim,
            mlp_ratio=sizes.mlp_ratio,
            scale_factor=sizes.scale_factor,
        )
        if sizes.mapping:
            self.text_token_mapping = nn.Linear(sizes.connector_in, sizes.context_dim)

    def map_quoted(self, embeds: torch.Tensor, quoted: torch.Tensor) -> torch.Tensor:
        """Return what quoted tokens add to the connector's output, as `extra` of `forward`.

        Args:
            embeds: of the language model's table, (B, N_p, connector_in).
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
            prompt_embeds: (B, N_p, E); the first `connector_in` columns are hidden states.
            prompt_mask: (B, N_p), one or true where there is a token.
            prompt_positions: (N_p, 3).
            noisy_positions: (N_v, 3).
            clean_positions: (N_v, 3).
            timestep: sigma, 1 at the first step.
            extra: (B, N_p, context_dim), added to the connector's tokens.
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
        states = prompt_embeds[..., : self.sizes.connector_in].float()
        tokens, pooled = self.connector(states, timestep, prompt_mask)
        vector = self.time_in(sinusoid(1000.0 * timestep)) + self.vector_in(pooled)
        record.tokens, record.pooled, record.vector = tokens, pooled, vector
        prompt = self.txt_in(tokens if extra is None else tokens + extra)
        image = torch.cat([noise.expand(batch, -1, -1), clean_latents], dim=1)
        hidden = torch.cat([prompt, self.img_in(image)], dim=1)
        places = torch.cat([prompt_positions, noisy_positions, clean_positions])
        turns = rotary_turns(places, self.sizes.axes)
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


@torch.no_grad()
def reference_step1x(
    model: ReferenceStep1X,
    *,
    clean_latents: torch.Tensor,
    noise: torch.Tensor,
    prompt_embeds: torch.Tensor,
    prompt_mask: torch.Tensor,
    prompt_positions: torch.Tensor,
    noisy_positions: torch.Tensor,
    clean_positions: torch.Tensor,
    prompt_weights: torch.Tensor,
    feature_block: int,
    timestep: float = 1.0,
    extra: torch.Tensor | None = None,
) -> ReferenceCapture:
    """Run the whole transformer and keep every attention matrix of the clean tokens.

    Args:
        model: with weights.
        clean_latents: (B, N_v, C) float32.
        noise: (1, N_v, C).
        prompt_embeds: (B, N_p, E).
        prompt_mask: (B, N_p).
        prompt_positions: (N_p, 3).
        noisy_positions: (N_v, 3).
        clean_positions: (N_v, 3).
        prompt_weights: w, (B, N_p).
        feature_block: l'.
        timestep: sigma.
        extra: added to the connector's tokens, (B, N_p, context).
    """
    record: Step1XRecord = model(
        clean_latents,
        noise,
        prompt_embeds,
        prompt_mask,
        prompt_positions,
        noisy_positions,
        clean_positions,
        timestep,
        extra,
        feature_block=feature_block,
    )
    return record.capture(prompt_weights)


def makers_names(store_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each of the makers' tensors, the diffusers tensors it is stacked of.

    Args:
        store_names: of a transformer in the layout of diffusers.
    """
    stored = set(store_names)
    found: dict[str, tuple[str, ...]] = {}
    found |= {name: (name,) for name in sorted(stored) if name.startswith(_SAME)}
    found |= _layers("", "", _ENDS)
    for number in _numbers("transformer_blocks", stored):
        ours, theirs = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        found |= _layers(ours, theirs, _DOUBLE)
        found |= {ours + new: (theirs + old,) for new, old in _DOUBLE_SCALES.items()}
    for number in _numbers("single_transformer_blocks", stored):
        ours, theirs = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        found |= _layers(ours, theirs, _SINGLE)
        found |= {ours + new: (theirs + old,) for new, old in _SINGLE_SCALES.items()}
    return found


def _layers(ours: str, theirs: str, names: Names) -> dict[str, tuple[str, ...]]:
    return {
        f"{ours}{new}.{kind}": tuple(f"{theirs}{old}.{kind}" for old in parts)
        for new, parts in names.items()
        for kind in ("weight", "bias")
    }


def _numbers(blocks: str, names: Iterable[str]) -> Iterator[int]:
    pattern = re.compile(rf"{blocks}\.(\d+)\.")
    yield from sorted({int(found[1]) for name in names if (found := pattern.match(name))})


def makers_tensors(store: Mapping[str, StoredTensor]) -> dict[str, AnyStored]:
    """Return a checkpoint's tensors under the makers' names.

    Args:
        store: in the makers' layout or that of diffusers.
    """
    if "img_in.weight" in store:
        return {name: store[name] for name in store if not name.startswith("final_layer.")}
    found: dict[str, AnyStored] = {}
    for name, parts in makers_names(store).items():
        stored = tuple(store[part] for part in parts)
        found[name] = stored[0] if len(stored) == 1 else StackedTensor(stored)
    return found


def makers_sizes(tensors: Mapping[str, AnyStored], *, connector_heads: int = 32) -> Step1XSizes:
    """Read sizes off shapes; the connector's heads are the one thing shapes do not say.

    Args:
        tensors: of `makers_tensors`.
        connector_heads: as in the configuration.
    """
    width, channels = tensors["img_in.weight"].shape
    head = tensors["single_blocks.0.norm.query_norm.scale"].shape[0]
    context, states = tensors["connector.S.input_embedder.weight"].shape
    blocks = "connector.S.individual_token_refiner.blocks"
    return Step1XSizes(
        in_channels=channels,
        width=width,
        heads=width // head,
        double=len(list(_numbers("double_blocks", tensors))),
        single=len(list(_numbers("single_blocks", tensors))),
        mlp_ratio=tensors["double_blocks.0.img_mlp.0.bias"].shape[0] / width,
        context_dim=context,
        vector_dim=tensors["connector.global_proj_out.bias"].shape[0],
        connector_in=states,
        connector_heads=connector_heads,
        connector_depth=len(list(_numbers(re.escape(blocks), tensors))),
        axes=(head // 8, 7 * head // 16, 7 * head // 16),
        mapping="text_token_mapping.weight" in tensors,
        scale_factor="connector.scale_factor" in tensors,
    )
