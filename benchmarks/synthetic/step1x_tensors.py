"""Names and shapes of the transformer of Step1X-Edit, in the makers' layout and in diffusers'.

The makers' names come first; a tensor of the diffusers layout is some rows of theirs, so both
layouts hold the same model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = [
    "SMALL",
    "STEP1X",
    "Laid",
    "Rows",
    "Step1XShape",
    "as_they_are",
    "linear",
    "norm",
    "transformer_tensors",
    "transformer_tensors_diffusers",
]

Shapes = dict[str, tuple[int, ...]]


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
        vision_*: the language model's eye.
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


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a tensor of the makers' layout, which is `shape` as a whole."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Laid:
    """A tensor as one layout has it: runs of rows of another, one after the other."""

    shape: tuple[int, ...]
    rows: tuple[Rows, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def as_they_are(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Laid]:
    """Lay tensors out under their own names."""
    return {k: Laid(shape, (Rows(k, shape, 0, shape[0]),)) for k, shape in shapes.items()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """Weight and bias of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    """Scale and shift of a norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def transformer_tensors(
    shape: Step1XShape, *, scale_factor: bool, mapping: bool = False
) -> dict[str, Laid]:
    """Return the makers' transformer and connector.

    Args:
        shape: sizes.
        scale_factor: version 1.0 scales the mean that the pooled vector is made of.
        mapping: version 1.2 may map embeddings of quoted tokens past the connector.
    """
    width = shape.width
    found: Shapes = {}
    found |= linear("img_in", shape.channels, width)
    for name, inputs in (("time_in", 256), ("vector_in", shape.pooled)):
        found |= linear(f"{name}.in_layer", inputs, width)
        found |= linear(f"{name}.out_layer", width, width)
    found |= linear("txt_in", shape.connector, width)
    for number in range(shape.double):
        for stream in ("img", "txt"):
            found |= _double(f"double_blocks.{number}.{stream}", shape)
    for number in range(shape.single):
        block = f"single_blocks.{number}"
        found |= linear(f"{block}.linear1", width, 7 * width)
        found |= linear(f"{block}.linear2", 5 * width, width)
        found |= _scales(f"{block}.norm", shape)
        found |= linear(f"{block}.modulation.lin", width, 3 * width)
    found |= linear("final_layer.linear", width, shape.channels)
    found |= linear("final_layer.adaLN_modulation.1", width, 2 * width)
    found |= _connector(shape)
    if scale_factor:
        found["connector.scale_factor"] = (1,)
    if mapping:
        found |= linear("text_token_mapping", shape.text_width, shape.connector)
    return as_they_are(found)


def _double(prefix: str, shape: Step1XShape) -> Shapes:
    width = shape.width
    return (
        linear(f"{prefix}_mod.lin", width, 6 * width)
        | linear(f"{prefix}_attn.qkv", width, 3 * width)
        | _scales(f"{prefix}_attn.norm", shape)
        | linear(f"{prefix}_attn.proj", width, width)
        | linear(f"{prefix}_mlp.0", width, 4 * width)
        | linear(f"{prefix}_mlp.2", 4 * width, width)
    )


def _scales(prefix: str, shape: Step1XShape) -> Shapes:
    return {f"{prefix}.{which}_norm.scale": (shape.head_dim,) for which in ("query", "key")}


def _connector(shape: Step1XShape) -> Shapes:
    given, width = shape.text_width, shape.connector
    found = linear("connector.S.input_embedder", given, width)
    found |= linear("connector.S.t_embedder.mlp.0", 256, width)
    found |= linear("connector.S.t_embedder.mlp.2", width, width)
    found |= linear("connector.S.c_embedder.linear_1", given, width)
    found |= linear("connector.S.c_embedder.linear_2", width, width)
    for number in range(shape.connector_depth):
        block = f"connector.S.individual_token_refiner.blocks.{number}"
        found |= norm(f"{block}.norm1", width)
        found |= linear(f"{block}.self_attn_qkv", width, 3 * width)
        found |= linear(f"{block}.self_attn_proj", width, width)
        found |= norm(f"{block}.norm2", width)
        found |= linear(f"{block}.mlp.fc1", width, 4 * width)
        found |= linear(f"{block}.mlp.fc2", 4 * width, width)
        found |= linear(f"{block}.adaLN_modulation.1", width, 2 * width)
    return found | linear("connector.global_proj_out", given, shape.pooled)


# Makers' names to those of diffusers, where a tensor stays whole.
_RENAMED = (
    (r"time_in\.", "time_embed."),
    (r"vector_in\.", "vec_embed."),
    (r"txt_in\.", "context_embedder."),
    (r"img_in\.", "x_embedder."),
    (r"final_layer\.linear\.", "proj_out."),
    (r"double_blocks\.(\d+)\.img_mod\.lin", r"transformer_blocks.\1.norm1.linear"),
    (r"double_blocks\.(\d+)\.txt_mod\.lin", r"transformer_blocks.\1.norm1_context.linear"),
    (
        r"double_blocks\.(\d+)\.img_attn\.norm\.(.).*_norm\.scale",
        r"transformer_blocks.\1.attn.norm_\2.weight",
    ),
    (
        r"double_blocks\.(\d+)\.txt_attn\.norm\.(.).*_norm\.scale",
        r"transformer_blocks.\1.attn.norm_added_\2.weight",
    ),
    (r"double_blocks\.(\d+)\.img_attn\.proj", r"transformer_blocks.\1.attn.to_out.0"),
    (r"double_blocks\.(\d+)\.txt_attn\.proj", r"transformer_blocks.\1.attn.to_add_out"),
    (r"double_blocks\.(\d+)\.img_mlp\.0", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"double_blocks\.(\d+)\.img_mlp\.2", r"transformer_blocks.\1.ff.net.2"),
    (r"double_blocks\.(\d+)\.txt_mlp\.0", r"transformer_blocks.\1.ff_context.net.0.proj"),
    (r"double_blocks\.(\d+)\.txt_mlp\.2", r"transformer_blocks.\1.ff_context.net.2"),
    (
        r"single_blocks\.(\d+)\.norm\.(.).*_norm\.scale",
        r"single_transformer_blocks.\1.attn.norm_\2.weight",
    ),
    (r"single_blocks\.(\d+)\.linear2", r"single_transformer_blocks.\1.proj_out"),
    (r"single_blocks\.(\d+)\.modulation\.lin", r"single_transformer_blocks.\1.norm.linear"),
)
# And where its rows are several tensors: their names, and how many rows each has of the width.
_SPLIT = (
    (
        r"double_blocks\.(\d+)\.img_attn\.qkv",
        "transformer_blocks",
        {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1},
    ),
    (
        r"double_blocks\.(\d+)\.txt_attn\.qkv",
        "transformer_blocks",
        {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    ),
    (
        r"single_blocks\.(\d+)\.linear1",
        "single_transformer_blocks",
        {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4},
    ),
)


def transformer_tensors_diffusers(shape: Step1XShape, *, mapping: bool) -> dict[str, Laid]:
    """Return the same model as `Step1XEditTransformer2DModel` names it."""
    found: dict[str, Laid] = {}
    for name, laid in transformer_tensors(shape, scale_factor=False, mapping=mapping).items():
        found |= dict(_converted(name, laid.shape, shape.width))
    return found


def _converted(name: str, whole: tuple[int, ...], width: int) -> Iterator[tuple[str, Laid]]:
    kind = name.rpartition(".")[2]
    for pattern, blocks, parts in _SPLIT:
        if found := re.match(pattern, name):
            start = 0
            for part, share in parts.items():
                rows = Rows(name, whole, start, start + share * width)
                yield (
                    f"{blocks}.{found[1]}.{part}.{kind}",
                    Laid((share * width, *whole[1:]), (rows,)),
                )
                start = rows.stop
            return
    if name.startswith("final_layer.adaLN_modulation.1"):  # shift, scale to scale, shift
        shift, scale = Rows(name, whole, 0, width), Rows(name, whole, width, 2 * width)
        yield f"norm_out.linear.{kind}", Laid(whole, (scale, shift))
        return
    renamed = name
    for pattern, target in _RENAMED:
        renamed = re.sub(f"^{pattern}", target, renamed)
    yield renamed, Laid(whole, (Rows(name, whole, 0, whole[0]),))
