"""What differs between families where a whole model denoises: its weights and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch.nn import functional as F

from rism.evaluation.ablate.full_transformer import (
    FINAL,
    Flux2WholeStep,
    Step1XWholeStep,
    WholeModel,
    scale_then_shift,
)
from rism.export.checkpoint.meta_modules import Part, WeightRule, build_empty
from rism.export.checkpoint.safetensors_store import StoredTensor, TensorStore, read_headers
from rism.export.errors import UnsupportedModelError
from rism.export.families.flux2.dit import INTO_STREAM as FLUX2_INTO_STREAM
from rism.export.families.flux2.dit import MODULATIONS
from rism.export.families.flux2.klein import KleinModel
from rism.export.families.flux2.modulation import fold_modulation
from rism.export.families.step1x.connector import sinusoids
from rism.export.families.step1x.dit import INTO_STREAM as STEP1X_INTO_STREAM
from rism.export.families.step1x.model import Step1XModel
from rism.export.families.step1x.shapes import SINUSOIDS, read_linear
from rism.export.precision import Precision, apply_precision
from rism.export.spec import OpenModel

__all__ = ["Denoiser", "denoiser"]

# Pictures of one dataset have many sizes, and a schedule may depend on the size.
_SIGMAS_KEPT = 64


@dataclass(frozen=True)
class Denoiser:
    """How a family denoises.

    Attributes:
        whole: the transformer with its prediction.
        steps: of a run, as published.
        shift: mu of the scheduler's shift, from the tokens of the picture, the steps and the
            scheduler's configuration.
    """

    whole: Callable[[Precision], WholeModel]
    steps: int
    shift: Callable[[int, int, Mapping[str, Any]], float]


def denoiser(model: OpenModel, index: Mapping[str, Any]) -> Denoiser:
    """Return how an opened checkpoint denoises.

    Args:
        model: the checkpoint.
        index: its model_index.json, where it has one.

    Raises:
        UnsupportedModelError: its family is not known here.
    """
    if isinstance(model, KleinModel):
        # The distilled models take four steps; their bases were published with fifty.
        steps = 4 if index.get("is_distilled", True) else 50
        return Denoiser(lambda precision: _klein(model, precision), steps, _klein_shift)
    if isinstance(model, Step1XModel):
        return Denoiser(lambda precision: _step1x(model, precision), 28, _linear_shift)
    raise UnsupportedModelError(
        f"'{model.spec.family.name}' cannot be ablated, expected FLUX.2-klein or Step1X-Edit"
    )


def _klein_shift(tokens: int, steps: int, _config: Mapping[str, Any]) -> float:
    mu: float = compute_empirical_mu(tokens, steps)
    return mu


def _linear_shift(tokens: int, _steps: int, config: Mapping[str, Any]) -> float:
    """FLUX.1's line through two sizes; Step1X-Edit's published sampler has the same."""
    fewest, most = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    return float(low + (tokens - fewest) * (high - low) / (most - fewest))


def _klein(model: KleinModel, precision: Precision) -> WholeModel:
    config = model.files.transformer_config
    store = _with_final(model.files.transformer)
    transformer = build_empty(lambda: Flux2Transformer2DModel.from_config(config))

    @lru_cache(maxsize=_SIGMAS_KEPT)
    def constants(sigma: float) -> dict[str, torch.Tensor]:
        folded = fold_modulation(
            store,
            timestep=sigma,
            timestep_channels=config["timestep_guidance_channels"],
            width=model.spec.feature_dim,
            layers=(*MODULATIONS, FINAL),
        )
        if "adaLN_modulation" in store[f"{FINAL}.linear.weight"].key:
            shift, scale = folded[FINAL].chunk(2, dim=-1)
            folded[FINAL] = torch.cat([scale, shift], dim=-1)
        return folded

    first = constants(model.spec.timestep)
    buffers = {name: value.to(precision.stream) for name, value in first.items()}
    module = Flux2WholeStep(transformer, model.spec.family, buffers)
    rules: dict[str, WeightRule] = {
        name: store[name] for name, tensor in module.named_parameters() if tensor.is_meta
    }
    _cast(module, precision, rules, FLUX2_INTO_STREAM)
    return WholeModel(Part("transformer", module, rules), constants, precision.stream)


def _with_final(store: TensorStore) -> TensorStore:
    """Return the transformer's tensors with the final modulation, which no graph needs."""
    name = f"{FINAL}.linear.weight"
    file = store["x_embedder.weight"].file
    if name in store or file is None:
        return store
    tensors: dict[str, StoredTensor] = dict(store)
    for key, tensor in read_headers(file).items():
        if key.endswith("final_layer.adaLN_modulation.1.weight"):
            tensors[name] = tensor
    return TensorStore(store.part, tensors)


def _step1x(model: Step1XModel, precision: Precision) -> WholeModel:
    store, sizes = model.files.transformer, model.sizes

    @lru_cache(maxsize=_SIGMAS_KEPT)
    def constants(sigma: float) -> dict[str, torch.Tensor]:
        steps = sinusoids(1000 * sigma, SINUSOIDS)
        found = {}
        for name, first, second in (
            ("time", "time_embed.in_layer", "time_embed.out_layer"),
            ("connector_time", "connector.S.t_embedder.mlp.0", "connector.S.t_embedder.mlp.2"),
        ):
            found[name] = read_linear(store, second, F.silu(read_linear(store, first, steps)))
        return found

    first = constants(model.spec.timestep)
    module = build_empty(lambda: Step1XWholeStep(sizes, model.spec.family, first, precision))
    rules: dict[str, WeightRule] = {
        name: scale_then_shift(store[name]) if name.startswith(FINAL) else store[name]
        for name in module.state_dict()
    }
    _cast(module, precision, rules, STEP1X_INTO_STREAM)
    return WholeModel(Part("transformer", module, rules), constants)


def _cast(
    module: torch.nn.Module,
    precision: Precision,
    rules: Mapping[str, WeightRule],
    into_stream: tuple[str, ...],
) -> None:
    def stored(name: str) -> torch.dtype:
        return rules[name].dtype

    apply_precision(module, precision, stored, into_stream=into_stream)
