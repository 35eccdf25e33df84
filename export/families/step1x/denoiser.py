"""Step1X-Edit's whole transformer at any denoising step, for the ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from rism.export.attention_capture import Capture
from rism.export.checkpoint.meta_modules import WeightRule, build_empty, cast_part
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.denoising import SIGMAS_KEPT, Denoiser, WholeModel
from rism.export.families.step1x.connector import timestep_constants
from rism.export.families.step1x.dit import INTO_STREAM, Step1XSingleStep
from rism.export.families.step1x.model import Step1XModel
from rism.export.families.step1x.modulation import INTO_STREAM as MODULATION_INTO_STREAM
from rism.export.families.step1x.modulation import Step1XModulation
from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.family import FamilySpec
from rism.export.graph.rotary import Rotary
from rism.export.precision import Precision
from rism.export.spec import PromptTokens

_STEPS = 28
_MODULATION = "modulation."


class Step1XWholeStep(Step1XSingleStep):
    """Step1X-Edit's transformer with its last block and its prediction.

    It is built with one single-stream block more than the model has: the exporter's module
    keeps only a part of its last one, which is thrown away here.
    """

    def __init__(
        self,
        sizes: Step1XSizes,
        family: FamilySpec,
        constants: Mapping[str, torch.Tensor],
        precision: Precision,
    ) -> None:
        """See `Step1XSingleStep`; the sizes are the model's own."""
        widened = replace(sizes, single=sizes.single + 1)
        super().__init__(widened, family, constants, precision)
        del self.last_attn, self.last_norm
        width = sizes.width
        # Of one prompt at many timesteps: here it is a part of the transformer. The final norm's
        # shift and scale stand in the place of those of a last block.
        self.modulation = Step1XModulation(widened, constants)
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, sizes.in_channels)

    def _modulation(self, prompt: PromptTokens) -> torch.Tensor:
        rows: torch.Tensor = self.modulation(prompt.embeds, prompt.mask)
        return rows.to(self.precision.stream)

    def _last_block(
        self, hidden: torch.Tensor, rows: torch.Tensor, _rotary: Rotary, capture: Capture
    ) -> None:
        """Predict from the output of the blocks, all of which have run."""
        spans = capture.spans
        scale, shift = rows.unsqueeze(1).chunk(2, dim=-1)
        normal = self.final_norm(hidden[:, spans.prompt : spans.clean_start])
        capture.velocity = self.proj_out((1 + scale) * normal + shift).float()


def step1x_denoiser(model: Step1XModel) -> Denoiser:
    """See `FamilySpec.denoiser`."""
    return Denoiser(lambda precision: _whole(model, precision), _STEPS, _shift)


def _shift(tokens: int, _steps: int, config: Mapping[str, Any]) -> float:
    """FLUX.1's line through two sizes; Step1X-Edit's published sampler has the same."""
    fewest, most = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    return float(low + (tokens - fewest) * (high - low) / (most - fewest))


def _whole(model: Step1XModel, precision: Precision) -> WholeModel:
    store, sizes = model.files.transformer, model.sizes
    constants = lru_cache(maxsize=SIGMAS_KEPT)(partial(timestep_constants, store))
    first = constants(model.spec.timestep)
    module = build_empty(lambda: Step1XWholeStep(sizes, model.spec.family, first, precision))
    final = f"{_MODULATION}single_transformer_blocks.{sizes.single}.norm.linear"
    rules = {
        name: _scale_then_shift(store[name.replace(final, "norm_out.linear")])
        if name.startswith(final)
        else store[name.removeprefix(_MODULATION)]
        for name in module.state_dict()
    }
    into_stream = (*INTO_STREAM, *MODULATION_INTO_STREAM)

    def by_buffer(sigma: float) -> dict[str, torch.Tensor]:
        found = constants(sigma)
        return {"connector_time": found["connector_time"], f"{_MODULATION}time": found["time"]}

    part = cast_part("transformer", module, rules, precision, into_stream)
    return WholeModel(part, by_buffer)


def _scale_then_shift(stored: StoredTensor) -> WeightRule:
    """Bring the final modulation to the order of diffusers: the makers have the shift first."""
    if "adaLN_modulation" not in stored.key:
        return stored
    shift, scale = stored.read().chunk(2)
    return torch.cat([scale, shift])
