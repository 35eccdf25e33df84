"""Step1X-Edit's own file layout: one safetensors file for the transformer, one for the VAE.

The names are those of FLUX.1's makers, and a connector's. The mapping is tested against the
reference transcription, which uses the makers' names (tests/export/families/step1x/test_files.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.autoencoder_names import open_encoder

__all__ = ["is_step1x_file", "open_autoencoder", "open_transformer"]

_MARK = "connector.S.input_embedder.weight"
_PREFIX = "model.diffusion_model."  # some tools add it
_WHOLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_embed.in_layer",
    "time_in.out_layer": "time_embed.out_layer",
    "vector_in.in_layer": "vec_embed.in_layer",
    "vector_in.out_layer": "vec_embed.out_layer",
    "text_token_mapping": "text_token_mapping",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def is_step1x_file(headers: Mapping[str, StoredTensor]) -> bool:
    """Tell whether a file holds a Step1X-Edit transformer in its makers' layout."""
    return _MARK in headers or _PREFIX + _MARK in headers


def open_transformer(file: Path, headers: Mapping[str, StoredTensor]) -> TensorStore:
    """Map a file to the names of the diffusers layout; fused tensors become runs of rows.

    Raises:
        CheckpointError: A name that this layout does not have.
    """
    short = {key.removeprefix(_PREFIX): tensor for key, tensor in headers.items()}
    scales = sorted(key for key in short if key.endswith((".scale_weight", "scaled_fp8")))
    if scales:
        raise CheckpointError(
            f"{file} holds 8-bit weights with scales ({scales[0]}), expected none: use the "
            "bfloat16 release, or one whose float8_e4m3fn weights are plain casts"
        )
    width = short["img_in.weight"].shape[0] if "img_in.weight" in short else 0
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in short.items():
        tensors |= dict(_mapped(file, key, tensor, width))
    return TensorStore(file.name, tensors)


def _mapped(
    file: Path, key: str, tensor: StoredTensor, width: int
) -> Iterator[tuple[str, StoredTensor]]:
    if key.startswith("connector."):
        yield key, tensor
        return
    stem, _, kind = key.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    match = re.fullmatch(r"(double|single)_blocks\.(\d{1,3})\.(.+)", stem, re.ASCII)
    if match is None and stem in _WHOLE:
        yield f"{_WHOLE[stem]}.{kind}", tensor
        return
    if match is not None:
        single = match[1] == "single"
        prefix = "single_transformer_blocks" if single else "transformer_blocks"
        block, name = f"{prefix}.{match[2]}", match[3]
        names = _SINGLE if single else _DOUBLE
        rows = tensor.shape[0] if tensor.shape else 0
        if name in names:
            yield f"{block}.{names[name]}.{kind}", tensor
            return
        if single and name == "linear1" and rows > 3 * width:
            for place, part in enumerate(("attn.to_q", "attn.to_k", "attn.to_v")):
                yield f"{block}.{part}.{kind}", tensor.rows(place * width, (place + 1) * width)
            yield f"{block}.proj_mlp.{kind}", tensor.rows(3 * width, rows)
            return
        if not single and name in _FUSED and rows == 3 * width:
            for place, part in enumerate(_FUSED[name]):
                yield f"{block}.{part}.{kind}", tensor.rows(place * width, (place + 1) * width)
            return
    raise CheckpointError(
        f"{file} holds a tensor {key[:100]!r} that Step1X-Edit's layout does not have: "
        "expected an unquantised Step1X-Edit transformer"
    )


def open_autoencoder(file: Path) -> TensorStore:
    """Map an autoencoder file to diffusers' names: the encoder only.

    Raises:
        CheckpointError: The file is not one, or damaged.
    """
    store = open_encoder(file)
    if "encoder.conv_in.weight" not in store or "bn.running_mean" in store:
        raise CheckpointError(f"{file} is not FLUX.1's autoencoder: expected its vae.safetensors")
    return store
