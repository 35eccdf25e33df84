"""Whole transformers for any step: the exporter's, with the last block and the projection.

The exporter's single step ends where the last captured quantity is known. Later denoising
steps need what the model predicts, so here the last block runs as the others do and the final
norm and projection follow. Everything else is the exporter's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from rism.evaluation.ablate.capture import WideCapture
from rism.export.attention_capture import Capture
from rism.export.checkpoint.meta_modules import Part
from rism.export.checkpoint.safetensors_store import StoredTensor
from rism.export.families.flux2.dit import Flux2SingleStep
from rism.export.families.step1x.dit import Step1XSingleStep, Step1XSizes
from rism.export.precision import Precision
from rism.export.spec import FamilySpec

__all__ = ["FINAL", "Flux2WholeStep", "Step1XWholeStep", "WholeModel", "scale_then_shift"]

FINAL = "norm_out"
"""Name of the final modulation layer in both families."""

Rotary = tuple[torch.Tensor, torch.Tensor]
Constants = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class WholeModel:
    """A transformer, and what of it depends on the step alone.

    Attributes:
        part: the module and where its weights are.
        constants: buffers of the module at a sigma, by name, float32.
        stream: the type they have in the module, or None for float32.
    """

    part: Part
    constants: Callable[[float], Constants]
    stream: torch.dtype | None = None

    def at(self, sigma: float) -> None:
        """Set the module's step."""
        module = self.part.module
        for name, value in self.constants(sigma).items():
            old = module.get_buffer(name)
            module.register_buffer(name, value.to(old.device, self.stream), persistent=False)


class Flux2WholeStep(Flux2SingleStep):
    """FLUX.2's transformer with its last block and its prediction.

    Attributes:
        norm_out: scale and shift of the final norm at the step, (1, 2 D).
    """

    norm_out: torch.Tensor

    def __init__(
        self, transformer: Flux2Transformer2DModel, family: FamilySpec, modulation: Constants
    ) -> None:
        """See `Flux2SingleStep`; `modulation` also has `FINAL`."""
        super().__init__(transformer, family, modulation)
        del self.last, self.last_norm
        self.single_transformer_blocks = transformer.single_transformer_blocks
        self.final_norm = transformer.norm_out.norm
        self.proj_out = transformer.proj_out
        self.register_buffer(FINAL, modulation[FINAL], persistent=False)

    def _last_block(self, hidden: torch.Tensor, _rotary: Rotary, capture: Capture) -> None:
        """What follows the blocks: all of them have run."""
        spans = capture.spans
        scale, shift = self.norm_out.unsqueeze(1).chunk(2, dim=-1)
        normal = self.final_norm(hidden[:, spans.prompt : spans.clean_start])
        _predict(capture, self.proj_out((1 + scale) * normal + shift))


class Step1XWholeStep(Step1XSingleStep):
    """Step1X-Edit's transformer with its last block and its prediction.

    It is built with one single-stream block more than the model has: the exporter's module
    keeps only a part of its last one, which is thrown away here.
    """

    def __init__(
        self, sizes: Step1XSizes, family: FamilySpec, constants: Constants, precision: Precision
    ) -> None:
        """See `Step1XSingleStep`; the sizes are the model's own."""
        super().__init__(replace(sizes, single=sizes.single + 1), family, constants, precision)
        del self.last_attn, self.last_norm, self.last_modulation
        width = sizes.width
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(width, 2 * width)})
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, sizes.in_channels)

    def _last_block(
        self, hidden: torch.Tensor, condition: torch.Tensor, _rotary: Rotary, capture: Capture
    ) -> None:
        """What follows the blocks: all of them have run."""
        spans = capture.spans
        modulation = self.norm_out["linear"](nn.functional.silu(condition))
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
        normal = self.final_norm(hidden[:, spans.prompt : spans.clean_start])
        _predict(capture, self.proj_out((1 + scale) * normal + shift))


def _predict(capture: Capture, velocity: torch.Tensor) -> None:
    assert isinstance(capture, WideCapture), "the ablations run whole models"
    capture.velocity = velocity.float()


def scale_then_shift(stored: StoredTensor) -> StoredTensor | torch.Tensor:
    """Bring the final modulation to the order of diffusers: the makers have the shift first."""
    if "adaLN_modulation" not in stored.key:
        return stored
    shift, scale = stored.read().chunk(2)
    return torch.cat([scale, shift])
