"""FLUX.2 transformers of random weights at their published sizes, made on the device.

No checkpoint, no text encoder and no autoencoder: what capture costs is in the transformer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from benchmarks.capture_variants import Variant, capturing
from benchmarks.random_checkpoint import SIZES, Shape
from rism.export.families.flux2_dit import INTO_STREAM, MODULATIONS, Flux2SingleStep
from rism.export.families.flux2_klein import FLUX2_KLEIN
from rism.export.precision import Precision, apply_precision
from rism.export.spec import ModelSpec
from rism.export.trace import Input
from rism.export.weightless import Part, build_empty
from rism.runtime.errors import InputError, one_line
from rism.runtime.manifest import Geometry, PromptRules

__all__ = ["Case", "RandomModel"]

# Not a published one: small enough to try the benchmark on a CPU.
_TINY = Shape(2, 3, 2, 32, text_hidden=16, text_intermediate=32)
_SHAPES = {"tiny": _TINY, **SIZES}
_PROMPT_TOKENS = {"tiny": 32}
_TOKEN_PX = 16
_FEATURE_DEPTH = 20 / 32
_SEED = 0


@dataclass(frozen=True)
class Case:
    """A model at a picture's size, such as 9b@1024."""

    model: str
    side_px: int

    def __str__(self) -> str:
        return f"{self.model}@{self.side_px}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read one.

        Raises:
            InputError: There is no such model, or the size is not made of whole tokens.
        """
        model, _, side = text.partition("@")
        if model not in _SHAPES or not side.isdecimal():
            raise InputError(
                f"model '{one_line(text, limit=40)}' is not known, expected one of "
                f"{', '.join(_SHAPES)} and a size, such as 4b@512"
            )
        if not 32 <= int(side) <= 4096 or int(side) % _TOKEN_PX:
            raise InputError(
                f"{one_line(text, limit=40)}: expected a multiple of {_TOKEN_PX} from 32 to 4096"
            )
        return cls(model, int(side))

    @property
    def shape(self) -> Shape:
        """Sizes of the model."""
        return _SHAPES[self.model]

    @property
    def tokens(self) -> dict[str, int]:
        """Lengths of the sequence's parts."""
        image = (self.side_px // _TOKEN_PX) ** 2
        return {"prompt": _PROMPT_TOKENS.get(self.model, 512), "noisy": image, "clean": image}

    def spec(self) -> ModelSpec:
        """Describe the model as an opened checkpoint would."""
        shape = self.shape
        arguments = shape.transformer()
        return ModelSpec(
            name=f"{self.model}, random weights",
            family=FLUX2_KLEIN,
            licence="none",
            demonstrator=False,
            geometry=Geometry(
                size_level=self.side_px,
                resize="always",
                remainder="stretch",
                multiple_px=_TOKEN_PX,
                token_px=_TOKEN_PX,
                resample="lanczos",
                max_aspect=8.0,
                mean=0.5,
                std=0.5,
            ),
            prompt=PromptRules(
                template="remove {expression}",
                prefix="",
                suffix="",
                max_length=self.tokens["prompt"],
                pad_id=0,
                tokenizer="",
            ),
            prompt_dim=arguments["joint_attention_dim"],
            latent_channels=arguments["in_channels"],
            double_blocks=shape.double,
            single_blocks=shape.single,
            feature_block=math.floor(_FEATURE_DEPTH * (shape.double + shape.single) + 0.5),
            feature_dim=shape.heads * shape.head_dim,
        )


class RandomModel:
    """The single step of one case, with weights, and inputs for it.

    Args:
        case: which model, how large a picture.
        precision: of weights and arithmetic.
        device: "cpu" or "cuda"; nothing large is ever anywhere else.
    """

    def __init__(self, case: Case, precision: Precision, device: str) -> None:
        self.case, self.precision, self.device = case, precision, device
        self.spec = case.spec()
        generator = torch.Generator(device).manual_seed(_SEED)
        self.step = self._empty(_modulation(self.spec, precision, generator))
        _fill(self.step, generator)
        self.step.rotary.to(device)
        self.feeds = self._feeds(generator)

    def module(self, variant: Variant) -> nn.Module:
        """Return the step with one way of capturing, ready to run on `feeds`."""
        return capturing(self.step, self.spec, variant, self.precision).eval()

    @property
    def nbytes(self) -> int:
        """Size of the weights."""
        return sum(value.nbytes for value in self.step.parameters())

    def part(self) -> Part:
        """Return a twin without weights, as the exporter traces it; rules name the weights."""
        modulation = {name: getattr(self.step, name).cpu() for name in MODULATIONS}
        return Part("transformer", self._empty(modulation), dict(self.step.named_parameters()))

    def drop_weights(self) -> None:
        """Give their memory back; only `feeds` is of use afterwards."""
        self.step.to("meta")

    def inputs(self) -> dict[str, Input]:
        """Inputs of a graph of this fixed size."""
        return {name: Input(tuple(value.shape), {}) for name, value in self.feeds.items()}

    def _empty(self, modulation: Mapping[str, torch.Tensor]) -> Flux2SingleStep:
        """Build the step with parameters on the meta device, in their types."""
        configuration = self.case.shape.transformer()
        transformer = build_empty(lambda: Flux2Transformer2DModel.from_config(configuration))
        step = Flux2SingleStep(transformer, FLUX2_KLEIN, modulation)
        stored = self.precision.compute
        apply_precision(step, self.precision, lambda _: stored, into_stream=INTO_STREAM)
        return step

    def _feeds(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        tokens, spec = self.case.tokens, self.spec
        side = self.case.side_px // _TOKEN_PX

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(1, *shape, generator=generator, device=self.device)

        cells = torch.arange(side, dtype=torch.float32, device=self.device)
        return {
            "clean_latents": normal(tokens["clean"], spec.latent_channels),
            "noise": normal(tokens["noisy"], spec.latent_channels),
            "prompt_embeds": normal(tokens["prompt"], spec.prompt_dim),
            "prompt_weights": torch.ones(1, tokens["prompt"], device=self.device),
            "positions": torch.cartesian_prod(cells, cells),
        }


def _modulation(
    spec: ModelSpec, precision: Precision, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Shifts, scales and gates of the size that trained ones have."""
    return {
        name: 0.3
        * torch.randn(
            1,
            parts * spec.feature_dim,
            generator=generator,
            device=generator.device,
            dtype=precision.stream,
        )
        for name, parts in zip(MODULATIONS, (6, 6, 3), strict=True)
    }


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter numbers as a trained model has them: unit gain, scales near one."""
    for name, empty in list(module.named_parameters()):
        value = torch.empty_like(empty, device=generator.device).normal_(generator=generator)
        value = 1 + 0.02 * value if empty.ndim < 2 else value.mul_(empty.shape[1] ** -0.5)
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner)._parameters[last] = nn.Parameter(value, requires_grad=False)
