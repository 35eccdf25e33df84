"""FLUX.2-klein's whole transformer at any denoising step, for the ablations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from rism.export.attention_capture import Capture
from rism.export.checkpoint.meta_modules import build_empty, cast_part
from rism.export.denoising import SIGMAS_KEPT, Denoiser, WholeModel
from rism.export.families.flux2.dit import INTO_STREAM, MODULATIONS, Flux2SingleStep
from rism.export.families.flux2.klein import KleinModel
from rism.export.families.flux2.modulation import fold_modulation
from rism.export.family import FamilySpec
from rism.export.graph.rotary import Rotary
from rism.export.precision import Precision

_FINAL = "norm_out"


class Flux2WholeStep(Flux2SingleStep):
    """FLUX.2's transformer with its last block and its prediction.

    Attributes:
        norm_out: scale and shift of the final norm at the step, (1, 2 D).
    """

    norm_out: torch.Tensor

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        family: FamilySpec,
        modulation: Mapping[str, torch.Tensor],
    ) -> None:
        """See `Flux2SingleStep`; `modulation` also has "norm_out"."""
        super().__init__(transformer, family, modulation)
        del self.last, self.last_norm
        self.single_transformer_blocks = transformer.single_transformer_blocks
        self.final_norm = transformer.norm_out.norm
        self.proj_out = transformer.proj_out
        self.register_buffer(_FINAL, modulation[_FINAL], persistent=False)

    def _last_block(self, hidden: torch.Tensor, _rotary: Rotary, capture: Capture) -> None:
        """Predict from the output of the blocks, all of which have run."""
        spans = capture.spans
        scale, shift = self.norm_out.unsqueeze(1).chunk(2, dim=-1)
        normal = self.final_norm(hidden[:, spans.prompt : spans.clean_start])
        capture.velocity = self.proj_out((1 + scale) * normal + shift).float()


def klein_denoiser(model: KleinModel, index: Mapping[str, Any]) -> Denoiser:
    """See `FamilySpec.denoiser`."""
    # The distilled models take four steps; their bases were published with fifty.
    steps = 4 if index.get("is_distilled", True) else 50
    return Denoiser(
        lambda precision: _whole(model, precision),
        steps,
        lambda tokens, steps, _config: float(compute_empirical_mu(tokens, steps)),
    )


def _whole(model: KleinModel, precision: Precision) -> WholeModel:
    config, store = model.files.transformer_config, model.files.transformer
    transformer = build_empty(lambda: Flux2Transformer2DModel.from_config(config))

    @lru_cache(maxsize=SIGMAS_KEPT)
    def constants(sigma: float) -> dict[str, torch.Tensor]:
        folded = fold_modulation(
            store,
            timestep=sigma,
            timestep_channels=config["timestep_guidance_channels"],
            width=model.spec.feature_dim,
            layers=(*MODULATIONS, _FINAL),
        )
        if "adaLN_modulation" in store[f"{_FINAL}.linear.weight"].key:  # the makers' order
            shift, scale = folded[_FINAL].chunk(2, dim=-1)
            folded[_FINAL] = torch.cat([scale, shift], dim=-1)
        return folded

    buffers = {
        name: value.to(precision.stream) for name, value in constants(model.spec.timestep).items()
    }
    module = Flux2WholeStep(transformer, model.spec.family, buffers)
    rules = {name: store[name] for name, tensor in module.named_parameters() if tensor.is_meta}
    part = cast_part("transformer", module, rules, precision, INTO_STREAM)
    return WholeModel(part, constants, precision.stream)
