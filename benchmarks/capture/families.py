"""The models that can be measured by name: a builder for each family, and a table.

Sizes are the published ones, and small ones to try the benchmark on a CPU; nothing is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from benchmarks.synthetic.flux2_checkpoint import SIZES, KleinShape
from benchmarks.synthetic.step1x_tensors import SMALL, STEP1X, Step1XShape
from rism.export.families.flux2 import FAMILY as FLUX2_KLEIN
from rism.export.families.flux2.dit import INTO_STREAM as FLUX2_INTO_STREAM
from rism.export.families.flux2.dit import MODULATIONS, Flux2SingleStep
from rism.export.families.step1x import FAMILIES as STEP1X_FAMILIES
from rism.export.families.step1x.dit import INTO_STREAM as STEP1X_INTO_STREAM
from rism.export.families.step1x.dit import Step1XSingleStep
from rism.export.families.step1x.modulation import modulation_widths
from rism.export.family import FamilySpec
from rism.export.precision import Precision

Draw = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Normal numbers of a shape and a type, on the device."""

Constants = Mapping[str, torch.Tensor]

_STEP1X_MODULATION = ("adaLN_modulation.1",)
_TINY = KleinShape(1, 2, 2, 32, text_hidden=16, text_intermediate=32)
_SMALL = KleinShape(2, 4, 8, 64, text_hidden=128, text_intermediate=256)
_TINY_STEP1X = replace(SMALL, double=1, single=2, connector_depth=1)


@dataclass(frozen=True)
class SizedModel:
    """A model of a family at given sizes.

    Attributes:
        family: axis rules of its tokens.
        shape: of the transformer: heads and their width, blocks of each kind.
        feature_depth: l' over the number of blocks.
        latent_channels: of a packed latent token.
        text_dim, prompt_dim: widths of the text encoder and of what is made of it.
        prompt_tokens: N_p.
        real_tokens: how many of them are no padding; None where the transformer does not ask.
        constants: draws what the timestep alone decides.
        build: makes a `SingleStepDiT` around these constants.
        into_stream: see `apply_precision`.
        first_blocks: the same model with so many single-stream blocks.
        modulation: ends of the names of layers whose results shift, scale and gate.
        modulation_dim: R of the modulation that is an input, or 0.
    """

    family: FamilySpec
    shape: KleinShape | Step1XShape
    feature_depth: float
    latent_channels: int
    text_dim: int
    prompt_dim: int
    prompt_tokens: int
    real_tokens: int | None
    constants: Callable[[Draw, Precision], Constants]
    build: Callable[[Constants, Precision], nn.Module]
    into_stream: tuple[str, ...]
    first_blocks: Callable[[int], SizedModel]
    modulation: tuple[str, ...] = ()
    modulation_dim: int = 0

    @property
    def feature_block(self) -> int:
        """l'; not the last block, of which attention is all that is left, unless it is the only."""
        blocks = self.shape.double + self.shape.single
        return max(0, min(math.floor(self.feature_depth * blocks + 0.5), blocks - 2))


def _klein(shape: KleinShape, *, prompt_tokens: int = 512) -> SizedModel:
    """FLUX.2-klein: all modulation is constants."""
    arguments, width = shape.transformer(), shape.heads * shape.head_dim

    def constants(draw: Draw, precision: Precision) -> Constants:
        # Shifts, scales and gates of the size that trained ones have.
        return {
            name: 0.3 * draw((1, parts * width), precision.stream)
            for name, parts in zip(MODULATIONS, (6, 6, 3), strict=True)
        }

    def build(constants: Constants, _: Precision) -> nn.Module:
        transformer = Flux2Transformer2DModel.from_config(arguments)
        return Flux2SingleStep(transformer, FLUX2_KLEIN, constants)

    return SizedModel(
        family=FLUX2_KLEIN,
        shape=shape,
        feature_depth=20 / 32,
        latent_channels=arguments["in_channels"],
        text_dim=shape.text_hidden,
        prompt_dim=arguments["joint_attention_dim"],
        prompt_tokens=prompt_tokens,
        real_tokens=None,
        constants=constants,
        build=build,
        into_stream=FLUX2_INTO_STREAM,
        first_blocks=lambda single: _klein(
            replace(shape, single=single), prompt_tokens=prompt_tokens
        ),
    )


def _step1x(shape: Step1XShape, *, prompt_tokens: int = 640, real_tokens: int = 350) -> SizedModel:
    """Step1X-Edit 1.0: modulation is an input, and a connector refines the prompt.

    An image's 256 to 324 tokens, an instruction and zeros up to 640 make its prompt.
    """
    family = STEP1X_FAMILIES["1.0"]
    sizes = shape.transformer(scaled=True)

    def constants(draw: Draw, _: Precision) -> Constants:
        return {"connector_time": draw((1, shape.connector), torch.float32)}

    return SizedModel(
        family=family,
        shape=shape,
        feature_depth=40 / 57,
        latent_channels=shape.channels,
        text_dim=shape.text_width,
        prompt_dim=shape.text_width,
        prompt_tokens=prompt_tokens,
        real_tokens=real_tokens,
        constants=constants,
        build=lambda constants, precision: Step1XSingleStep(sizes, family, constants, precision),
        into_stream=STEP1X_INTO_STREAM,
        first_blocks=lambda single: _step1x(
            replace(shape, single=single), prompt_tokens=prompt_tokens, real_tokens=real_tokens
        ),
        modulation=_STEP1X_MODULATION,
        modulation_dim=sum(modulation_widths(sizes)),
    )


def _of_blocks(blocks: int) -> SizedModel:
    """A narrow klein of so many blocks, a quarter of them double-stream."""
    double = blocks // 4
    shape = KleinShape(double, blocks - double, 2, 32, text_hidden=16, text_intermediate=32)
    return _klein(shape, prompt_tokens=64)


# How cost grows is asked of models of every one of these depths.
_DEPTHS = (1, 2, 4, 8, 16, 32, 57)

MODELS = {
    "tiny": _klein(_TINY, prompt_tokens=32),
    "small": _klein(_SMALL, prompt_tokens=128),
    **{f"blocks-{depth}": _of_blocks(depth) for depth in _DEPTHS},
    "4b": _klein(SIZES["4b"]),
    "9b": _klein(SIZES["9b"]),
    "tiny-step1x": _step1x(_TINY_STEP1X, prompt_tokens=32, real_tokens=18),
    "step1x-1.0": _step1x(STEP1X),
}
