"""Sizes of Step1X-Edit's parts, read off their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.errors import CheckpointError

_CONNECTOR_HEAD = 128  # width of a head in every published connector; no tensor says it


@dataclass(frozen=True, kw_only=True)
class ConnectorSizes:
    """Widths of a connector: in and out of it, and of the pooled vector; heads, blocks."""

    hidden: int
    width: int
    pooled: int
    heads: int
    depth: int


@dataclass(frozen=True)
class Step1XSizes:
    """Sizes of a transformer.

    Attributes:
        in_channels: of a packed latent token.
        heads, head_dim: of the attention; their product is the width.
        double, single: numbers of blocks.
        context: width of the connector's tokens.
        connector: its sizes.
        scaled: whether it has a scale factor (version 1.0).
        mapping: width of the quoted tokens' embeddings beside the hidden states, or 0.
    """

    in_channels: int
    heads: int
    head_dim: int
    double: int
    single: int
    context: int
    connector: ConnectorSizes
    scaled: bool
    mapping: int

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_dim

    @property
    def axes_dims(self) -> tuple[int, int, int]:
        """Share of a head that each rotary axis turns: (16, 56, 56) of 128."""
        first = self.head_dim // 8
        return first, (self.head_dim - first) // 2, (self.head_dim - first) // 2


def sizes_of(store: TensorStore, config: Mapping[str, Any]) -> Step1XSizes:
    """Read a transformer's sizes off its tensors.

    Args:
        store: under the names of the diffusers layout.
        config: its config.json, or nothing.
    """
    width, channels = _shape(store, "x_embedder.weight", 2)
    (head_dim,) = _shape(store, "single_transformer_blocks.0.attn.norm_q.weight", 1)
    inner, hidden = _shape(store, "connector.S.input_embedder.weight", 2)
    heads = config.get("connector_heads_num", max(1, inner // _CONNECTOR_HEAD))
    mapping = "text_token_mapping.weight"
    if width % head_dim:
        raise CheckpointError(
            f"{store.part}: a width of {width} is no multiple of the heads' {head_dim}: "
            "download it again"
        )
    return Step1XSizes(
        in_channels=channels,
        heads=width // head_dim,
        head_dim=head_dim,
        double=_count(store, "transformer_blocks."),
        single=_count(store, "single_transformer_blocks."),
        context=_shape(store, "context_embedder.weight", 2)[1],
        connector=ConnectorSizes(
            hidden=hidden,
            width=inner,
            pooled=_shape(store, "connector.global_proj_out.weight", 2)[0],
            heads=int(heads),
            depth=_count(store, "connector.S.individual_token_refiner.blocks."),
        ),
        scaled="connector.scale_factor" in store,
        mapping=_shape(store, mapping, 2)[0] if mapping in store else 0,
    )


def guess_vae(store: TensorStore) -> dict[str, Any]:
    """Read an autoencoder's configuration off its encoder."""
    levels = _count(store, "encoder.down_blocks.")
    channels = [
        _shape(store, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0]
        for level in range(levels)
    ]
    return {
        "block_out_channels": channels,
        "layers_per_block": _count(store, "encoder.down_blocks.0.resnets."),
        "latent_channels": _shape(store, "encoder.conv_out.weight", 4)[0] // 2,
    }


def _shape(store: TensorStore, name: str, axes: int) -> tuple[int, ...]:
    shape = store[name].shape
    if len(shape) != axes:
        raise CheckpointError(
            f"{store.part}: tensor {name} has shape {list(shape)}, expected {axes} axes: "
            "download it again"
        )
    return shape


def _count(names: Iterable[str], prefix: str) -> int:
    rests = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return len({rest.partition(".")[0] for rest in rests})
