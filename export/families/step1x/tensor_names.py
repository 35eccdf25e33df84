"""Step1X-Edit's own file layout: one safetensors file for the transformer, one for the VAE.

The names are those of FLUX.1's makers, and a connector's. The mapping is tested against the
reference, which uses the makers' names (tests/export/families/step1x/test_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.autoencoder_names import open_encoder
from rism.export.families.makers_names import TransformerNames

NAMES = TransformerNames(
    title="Step1X-Edit",
    whole={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_embed.in_layer",
        "time_in.out_layer": "time_embed.out_layer",
        "vector_in.in_layer": "vec_embed.in_layer",
        "vector_in.out_layer": "vec_embed.out_layer",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    double={
        "img_mod.lin": ("norm1.linear",),
        "img_attn.norm.query_norm": ("attn.norm_q",),
        "img_attn.norm.key_norm": ("attn.norm_k",),
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": ("attn.to_out.0",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mod.lin": ("norm1_context.linear",),
        "txt_attn.norm.query_norm": ("attn.norm_added_q",),
        "txt_attn.norm.key_norm": ("attn.norm_added_k",),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": ("attn.to_add_out",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
    },
    single={
        "modulation.lin": ("norm.linear",),
        "norm.query_norm": ("attn.norm_q",),
        "norm.key_norm": ("attn.norm_k",),
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
    },
    kept=("connector.", "text_token_mapping."),
)


def open_transformer(file: Path, headers: Mapping[str, StoredTensor]) -> TensorStore:
    """Map a file to the names of the diffusers layout; fused tensors become runs of rows.

    Raises:
        CheckpointError: A name that this layout does not have.
    """
    scales = sorted(key for key in headers if key.endswith((".scale_weight", "scaled_fp8")))
    if scales:
        raise CheckpointError(
            f"{file} holds 8-bit weights with scales ({scales[0]}), expected none: use the "
            "bfloat16 release, or one whose float8_e4m3fn weights are plain casts"
        )
    return NAMES.open(file, headers)


def open_autoencoder(file: Path) -> TensorStore:
    """Map an autoencoder file to diffusers' names: the encoder only.

    Raises:
        CheckpointError: The file is not one, or damaged.
    """
    store = open_encoder(file)
    if "encoder.conv_in.weight" not in store or "bn.running_mean" in store:
        raise CheckpointError(f"{file} is not FLUX.1's autoencoder: expected its vae.safetensors")
    return store
