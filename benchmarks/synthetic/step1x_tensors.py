"""Names and shapes of the transformer of Step1X-Edit, in the makers' layout and in diffusers'.

The makers' names come first; a tensor of the diffusers layout is some rows of theirs, so both
layouts hold the same model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.synthetic.tensor_files import Layout, Rows, Shapes, unchanged


@dataclass(frozen=True)
class Step1XShape:
    """Sizes of one model: the published one, or one small enough for tests.

    Attributes:
        channels: of a packed latent token, 4 x `vae_latent`.
        heads, head_dim: of the transformer; its width is their product.
        double, single: blocks of each kind.
        pooled: width of the vector that the connector gives beside its tokens.
        connector, connector_heads, connector_depth: the connector.
        vae_widths, vae_layers, vae_latent: the autoencoder.
        vision_*: the vision encoder.
        text_*: the language model; `mrope` divides half of a head among time, row and column.
        vocabulary: rows of the table of tokens.
        transformer_shards, text_shards: files that each is split into.
    """

    channels: int = 64
    heads: int = 24
    head_dim: int = 128
    double: int = 19
    single: int = 38
    pooled: int = 768
    connector: int = 4096
    connector_heads: int = 32
    connector_depth: int = 2
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_latent: int = 16
    vision_depth: int = 32
    vision_width: int = 1280
    vision_heads: int = 16
    vision_intermediate: int = 3420
    vision_full: tuple[int, ...] = (7, 15, 23, 31)
    text_blocks: int = 28
    text_width: int = 3584
    text_intermediate: int = 18944
    text_heads: int = 28
    text_kv_heads: int = 4
    mrope: tuple[int, int, int] = (16, 24, 24)
    vocabulary: int = 152064
    transformer_shards: int = 3
    text_shards: int = 5

    @property
    def width(self) -> int:
        """Of the transformer's residual stream."""
        return self.heads * self.head_dim

    @property
    def axes(self) -> tuple[int, int, int]:
        """Rotary dimensions of time, row and column."""
        return (self.head_dim // 8, 7 * self.head_dim // 16, 7 * self.head_dim // 16)


STEP1X = Step1XShape()
SMALL = Step1XShape(
    channels=16,
    heads=3,
    head_dim=32,
    double=2,
    single=3,
    pooled=48,
    connector=32,
    connector_heads=2,
    vae_widths=(32, 32, 32, 32),
    vae_layers=1,
    vae_latent=4,
    vision_depth=4,
    vision_width=32,
    vision_heads=2,
    vision_intermediate=48,
    vision_full=(1, 3),
    text_blocks=3,
    text_width=32,
    text_intermediate=64,
    text_heads=4,
    text_kv_heads=2,
    mrope=(2, 1, 1),
    vocabulary=2048,
    transformer_shards=2,
    text_shards=2,
)


def linears(prefix: str, sizes: dict[str, tuple[int, int]]) -> Shapes:
    """Return weights and biases of linear layers, given inputs and outputs by their names."""
    found: Shapes = {}
    for name, (inputs, outputs) in sizes.items():
        found[f"{prefix}{name}.weight"] = (outputs, inputs)
        found[f"{prefix}{name}.bias"] = (outputs,)
    return found


def transformer_tensors(
    shape: Step1XShape, *, scale_factor: bool, mapping: bool = False
) -> dict[str, Layout]:
    """Return the makers' transformer and connector."""
    width, head = shape.width, (shape.head_dim,)
    sizes = {
        "img_in": (shape.channels, width),
        "time_in.in_layer": (256, width),
        "time_in.out_layer": (width, width),
        "vector_in.in_layer": (shape.pooled, width),
        "vector_in.out_layer": (width, width),
        "txt_in": (shape.connector, width),
        "final_layer.linear": (width, shape.channels),
        "final_layer.adaLN_modulation.1": (width, 2 * width),
    }
    if mapping:
        sizes["text_token_mapping"] = (shape.text_width, shape.connector)
    found = linears("", sizes) | _connector(shape)
    stream = {
        "_mod.lin": (width, 6 * width),
        "_attn.qkv": (width, 3 * width),
        "_attn.proj": (width, width),
        "_mlp.0": (width, 4 * width),
        "_mlp.2": (4 * width, width),
    }
    single = {
        "linear1": (width, 7 * width),
        "linear2": (5 * width, width),
        "modulation.lin": (width, 3 * width),
    }
    for number, name in itertools.product(range(shape.double), ("img", "txt")):
        prefix = f"double_blocks.{number}.{name}"
        found |= linears(prefix, stream)
        found |= {f"{prefix}_attn.norm.{each}_norm.scale": head for each in ("query", "key")}
    for number in range(shape.single):
        prefix = f"single_blocks.{number}."
        found |= linears(prefix, single)
        found |= {f"{prefix}norm.{each}_norm.scale": head for each in ("query", "key")}
    if scale_factor:
        found["connector.scale_factor"] = (1,)
    return unchanged(found)


def _connector(shape: Step1XShape) -> Shapes:
    given, width = shape.text_width, shape.connector
    sizes = {
        "S.input_embedder": (given, width),
        "S.t_embedder.mlp.0": (256, width),
        "S.t_embedder.mlp.2": (width, width),
        "S.c_embedder.linear_1": (given, width),
        "S.c_embedder.linear_2": (width, width),
        "global_proj_out": (given, shape.pooled),
    }
    block = {
        "self_attn_qkv": (width, 3 * width),
        "self_attn_proj": (width, width),
        "mlp.fc1": (width, 4 * width),
        "mlp.fc2": (4 * width, width),
        "adaLN_modulation.1": (width, 2 * width),
    }
    found = linears("connector.", sizes)
    for number in range(shape.connector_depth):
        prefix = f"connector.S.individual_token_refiner.blocks.{number}."
        found |= linears(prefix, block)
        for norm, kind in itertools.product(("norm1", "norm2"), ("weight", "bias")):
            found[f"{prefix}{norm}.{kind}"] = (width,)
    return found


# Makers' names to those of diffusers, where a tensor stays whole: outside the blocks, and inside.
_RENAMED = {
    "time_in": "time_embed",
    "vector_in": "vec_embed",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_IN_BLOCKS = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
}
# And where its rows are several tensors: their names, and how many rows each has of the width.
_SPLIT = {
    "img_attn.qkv": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1},
    "txt_attn.qkv": {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    "linear1": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4},
}


def transformer_tensors_diffusers(shape: Step1XShape, *, mapping: bool) -> dict[str, Layout]:
    """Return the same model as `Step1XEditTransformer2DModel` names it."""
    found: dict[str, Layout] = {}
    for name, layout in transformer_tensors(shape, scale_factor=False, mapping=mapping).items():
        found |= dict(_converted(name, layout.shape, shape.width))
    return found


def _converted(name: str, whole: tuple[int, ...], width: int) -> Iterator[tuple[str, Layout]]:
    stem, _, kind = name.rpartition(".")
    if stem == "final_layer.adaLN_modulation.1":  # shift, scale to scale, shift
        shift, scale = Rows(name, whole, 0, width), Rows(name, whole, width, 2 * width)
        yield f"norm_out.linear.{kind}", Layout(whole, (scale, shift))
        return
    block = re.match(r"(double|single)_blocks\.(\d+)\.(.+)", stem)
    if block is None:
        for own, theirs in _RENAMED.items():
            stem = re.sub(rf"^{re.escape(own)}\b", theirs, stem)
        yield f"{stem}.{kind}", unchanged({name: whole})[name]
        return
    blocks = "transformer_blocks" if block[1] == "double" else "single_transformer_blocks"
    start = 0
    for part, share in _SPLIT.get(block[3], {}).items():
        rows = Rows(name, whole, start, start + share * width)
        yield f"{blocks}.{block[2]}.{part}.{kind}", Layout((share * width, *whole[1:]), (rows,))
        start = rows.stop
    if start == 0:
        kind = "weight" if kind == "scale" else kind
        renamed = f"{blocks}.{block[2]}.{_IN_BLOCKS[block[3]]}.{kind}"
        yield renamed, unchanged({name: whole})[name]
