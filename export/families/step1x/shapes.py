"""Sizes of Step1X-Edit's parts from their tensors, and tensors from sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from rism.export.checkpoint.meta_modules import build_empty
from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.step1x.connector import ConnectorSizes
from rism.export.families.step1x.dit import Step1XSingleStep, Step1XSizes
from rism.export.precision import PRECISIONS
from rism.export.spec import FamilySpec

__all__ = ["SINUSOIDS", "expected_shapes", "guess_vae", "read_linear", "sizes_of"]

SINUSOIDS = 256
"""Channels of the timestep's embedding before its layers."""

_CONNECTOR_HEAD = 128  # width of a head in every published connector; no tensor says it


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


def expected_shapes(sizes: Step1XSizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a transformer of these sizes, under the names of the diffusers layout."""
    width, inner = sizes.width, sizes.connector.width
    nobody = FamilySpec("", (), (), (), (), lambda *_: False, lambda _: None)  # type: ignore[arg-type,return-value]
    # One block more: the single step keeps only a part of its last one.
    whole = replace(sizes, single=sizes.single + 1)
    module = build_empty(lambda: Step1XSingleStep(whole, nobody, {}, PRECISIONS["fp32"]))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.startswith("last_")
    }
    linears = {
        "time_embed.in_layer": (width, SINUSOIDS),
        "time_embed.out_layer": (width, width),
        "connector.S.t_embedder.mlp.0": (inner, SINUSOIDS),
        "connector.S.t_embedder.mlp.2": (inner, inner),
        "norm_out.linear": (2 * width, width),
        "proj_out": (sizes.in_channels, width),
    }
    if sizes.mapping:
        linears["text_token_mapping"] = (sizes.mapping, sizes.connector.hidden)
    for name, (rows, columns) in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)
    return shapes


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


def read_linear(store: TensorStore, name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply a stored layer once, in float32."""
    weight, bias = (store[f"{name}.{kind}"].read().float() for kind in ("weight", "bias"))
    return torch.nn.functional.linear(x, weight, bias)
