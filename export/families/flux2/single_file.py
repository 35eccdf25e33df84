"""FLUX.2's own file layout: one safetensors file for the transformer, one for the autoencoder.

Names were read off published files; tests/export/families/flux2/test_single_file.py compares the
mapping with diffusers' own conversion, tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.autoencoder_names import open_encoder

__all__ = ["is_flux2_file", "open_autoencoder", "open_transformer"]

_MARK = "single_stream_modulation.lin.weight"
_PREFIX = "model.diffusion_model."  # some tools add it

_WHOLE = {
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
}
_DOUBLE = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def is_flux2_file(headers: Mapping[str, StoredTensor]) -> bool:
    """Tell whether a file holds a FLUX.2 transformer in its makers' layout."""
    return _MARK in headers or _PREFIX + _MARK in headers


def open_transformer(
    file: Path, headers: Mapping[str, StoredTensor]
) -> tuple[TensorStore, dict[str, Any]]:
    """Map a file to diffusers' names, and read its configuration off its shapes.

    The final layer's modulation has shift and scale swapped against diffusers; it is not needed
    and left out with the projection.

    Raises:
        CheckpointError: A name that this layout does not have.
    """
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in headers.items():
        tensors |= dict(_mapped(file, key.removeprefix(_PREFIX), tensor))
    return TensorStore(file.name, tensors), _config(file, tensors)


def _mapped(file: Path, key: str, tensor: StoredTensor) -> Iterator[tuple[str, StoredTensor]]:
    stem, _, kind = key.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    match = re.fullmatch(r"(double|single)_blocks\.(\d{1,3})\.(.+)", stem, re.ASCII)
    if stem == "final_layer.adaLN_modulation.1":
        return
    if match is None and stem in _WHOLE:
        yield f"{_WHOLE[stem]}.{kind}", tensor
        return
    if match is not None:
        single = match[1] == "single"
        prefix = "single_transformer_blocks" if single else "transformer_blocks"
        block, name = f"{prefix}.{match[2]}", match[3]
        names = _SINGLE if single else _DOUBLE
        if name in names:
            yield f"{block}.{names[name]}.{kind}", tensor
            return
        if not single and name in _FUSED and tensor.shape[0] % 3 == 0:
            rows = tensor.shape[0] // 3
            for place, part in enumerate(_FUSED[name]):
                yield f"{block}.{part}.{kind}", tensor.rows(place * rows, (place + 1) * rows)
            return
    raise CheckpointError(
        f"{file} holds a tensor {key[:100]!r} that FLUX.2's layout does not have: "
        "expected an unquantised FLUX.2-klein transformer"
    )


def _config(file: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    def size(name: str, axis: int) -> int:
        if name not in tensors:
            raise CheckpointError(f"{file} lacks {name}: download it again")
        return tensors[name].shape[axis]

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")})

    head = size("single_transformer_blocks.0.attn.norm_q.weight", 0)
    width = size("x_embedder.weight", 0)
    return {
        "in_channels": size("x_embedder.weight", 1),
        "num_layers": count("transformer_blocks"),
        "num_single_layers": count("single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": size("context_embedder.weight", 1),
        "timestep_guidance_channels": size(
            "time_guidance_embed.timestep_embedder.linear_1.weight", 1
        ),
        "mlp_ratio": size("single_transformer_blocks.0.attn.to_out.weight", 1) / width - 1,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": any("guidance_embedder" in name for name in tensors),
    }


def open_autoencoder(file: Path) -> TensorStore:
    """Map an autoencoder file to diffusers' names: the encoder and the batch norm.

    Raises:
        CheckpointError: The file is not one, or damaged.
    """
    store = open_encoder(file)
    if "encoder.conv_in.weight" not in store or "bn.running_mean" not in store:
        raise CheckpointError(f"{file} is not FLUX.2's autoencoder: expected its ae.safetensors")
    return store
