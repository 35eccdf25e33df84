"""FLUX.2's own file layout: one safetensors file for the transformer, one for the autoencoder.

Names were read off published files; tests/export/families/flux2/test_single_file.py compares the
mapping with diffusers' own conversion, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.autoencoder_names import open_encoder
from rism.export.families.makers_names import TransformerNames

NAMES = TransformerNames(
    title="FLUX.2",
    whole={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
        # Shift and scale are the other way round in diffusers.
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    double={
        "img_attn.norm.query_norm": ("attn.norm_q",),
        "img_attn.norm.key_norm": ("attn.norm_k",),
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.linear_in",),
        "img_mlp.2": ("ff.linear_out",),
        "txt_attn.norm.query_norm": ("attn.norm_added_q",),
        "txt_attn.norm.key_norm": ("attn.norm_added_k",),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.linear_in",),
        "txt_mlp.2": ("ff_context.linear_out",),
    },
    single={
        "linear1": ("attn.to_qkv_mlp_proj",),
        "linear2": ("attn.to_out",),
        "norm.query_norm": ("attn.norm_q",),
        "norm.key_norm": ("attn.norm_k",),
    },
)


def open_transformer(
    file: Path, headers: Mapping[str, StoredTensor]
) -> tuple[TensorStore, dict[str, Any]]:
    """Map a file to diffusers' names, and read its configuration off its shapes.

    Raises:
        CheckpointError: A name that this layout does not have, or a tensor that is missing.
    """
    store = NAMES.open(file, headers)

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in store if name.startswith(f"{prefix}.")})

    head = store["single_transformer_blocks.0.attn.norm_q.weight"].shape[0]
    width, channels = store["x_embedder.weight"].shape
    timestep = store["time_guidance_embed.timestep_embedder.linear_1.weight"]
    inner = store["single_transformer_blocks.0.attn.to_out.weight"].shape[1]
    config = {
        "in_channels": channels,
        "num_layers": count("transformer_blocks"),
        "num_single_layers": count("single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": store["context_embedder.weight"].shape[1],
        "timestep_guidance_channels": timestep.shape[1],
        "mlp_ratio": inner / width - 1,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": any("guidance_embedder" in name for name in store),
    }
    return store, config


def open_autoencoder(file: Path) -> TensorStore:
    """Map an autoencoder file to diffusers' names: the encoder and the batch norm.

    Raises:
        CheckpointError: The file is not one, or damaged.
    """
    store = open_encoder(file)
    if "encoder.conv_in.weight" not in store or "bn.running_mean" not in store:
        raise CheckpointError(f"{file} is not FLUX.2's autoencoder: expected its ae.safetensors")
    return store
