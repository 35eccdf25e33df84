"""The names of an autoencoder in the layout of its makers (LDM), for every FLUX."""

from __future__ import annotations

import re
from pathlib import Path

from rism.export.checkpoint.safetensors_store import TensorStore, read_headers

_PATTERNS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"encoder\.down\.(\d)\.block\.(\d)\.", r"encoder.down_blocks.\1.resnets.\2."),
        (r"encoder\.down\.(\d)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        (r"encoder\.mid\.block_1\.", "encoder.mid_block.resnets.0."),
        (r"encoder\.mid\.block_2\.", "encoder.mid_block.resnets.1."),
        (r"encoder\.mid\.attn_1\.norm\.", "encoder.mid_block.attentions.0.group_norm."),
        (r"encoder\.mid\.attn_1\.([qkv])\.", r"encoder.mid_block.attentions.0.to_\1."),
        (r"encoder\.mid\.attn_1\.proj_out\.", "encoder.mid_block.attentions.0.to_out.0."),
        (r"encoder\.norm_out\.", "encoder.conv_norm_out."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
    )
)


def open_encoder(file: Path) -> TensorStore:
    """Map a file to diffusers' names: the encoder, and the batch norm where there is one.

    Raises:
        CheckpointError: The file is damaged.
    """
    tensors = {}
    for key, tensor in read_headers(file).items():
        name = _name(key)
        if name is not None:
            # Attention's projections are 1 x 1 convolutions there, linear layers in diffusers.
            attention = ".attentions.0.to_" in name and name.endswith(".weight")
            tensors[name] = tensor.squeezed() if attention else tensor
    return TensorStore(file.name, tensors)


def _name(key: str) -> str | None:
    if key.startswith("bn."):
        return key
    if key.startswith(("encoder.quant_conv.", "quant_conv.")):
        return key.removeprefix("encoder.")
    if not key.startswith("encoder."):
        return None  # the decoder is not needed
    for pattern, name in _PATTERNS:
        key = pattern.sub(name, key)
    return key
