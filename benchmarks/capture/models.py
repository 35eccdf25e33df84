"""Transformers of random weights at their published sizes, made on the device in their types.

No checkpoint, no text encoder and no autoencoder: what capture costs is in the transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.capture.families import MODELS, Constants, Draw, SizedModel
from benchmarks.capture.variants import Variant, capturing
from rism.export.capture_blocks import choose_blocks, last_block
from rism.export.checkpoint.meta_modules import Part, build_empty
from rism.export.graph.trace import Input
from rism.export.precision import Precision, apply_precision
from rism.export.spec import ModelSpec
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.bundle.prompt_spec import PromptRules
from rism.runtime.errors import InputError, one_line

_TOKEN_PX = 16
_SEED = 0


@dataclass(frozen=True)
class CaptureCase:
    """A model at a image's size, such as 9b@1024 or, width by height, 9b@2048x1024.

    `blocks` and `noisy_grid` are the exporter's choices, `shared_padding` is `PromptRules`'s.
    """

    model: str
    side_px: int
    height_px: int | None = None
    blocks: str = "all"
    noisy_grid: int = 1
    shared_padding: bool = False

    def __str__(self) -> str:
        height = "" if self.height_px is None else f"x{self.height_px}"
        return f"{self.model}@{self.side_px}{height}"

    @classmethod
    def parse(cls, text: str) -> CaptureCase:
        """Read one.

        Raises:
            InputError: There is no such model, or the size is not made of whole tokens.
        """
        model, _, size = text.partition("@")
        sides = size.split("x")
        if model not in MODELS or len(sides) > 2 or not all(side.isdecimal() for side in sides):
            raise InputError(
                f"model '{one_line(text, limit=40)}' is not known, expected one of "
                f"{', '.join(MODELS)} and a size, such as 4b@512"
            )
        if any(not 32 <= int(side) <= 4096 or int(side) % _TOKEN_PX for side in sides):
            raise InputError(
                f"{one_line(text, limit=40)}: expected a multiple of {_TOKEN_PX} from 32 to 4096"
            )
        return cls(model, int(sides[0]), int(sides[1]) if len(sides) > 1 else None)

    @property
    def sized(self) -> SizedModel:
        """The model."""
        return MODELS[self.model]

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.height_px or self.side_px) // _TOKEN_PX, self.side_px // _TOKEN_PX

    @property
    def tokens(self) -> dict[str, int]:
        """Lengths of the sequence's parts."""
        image, prompt = self.grid_hw[0] * self.grid_hw[1], self.sized.prompt_tokens
        if self.shared_padding and self.sized.real_tokens is not None:
            prompt = self.sized.real_tokens + 1
        return {"prompt": prompt, "noisy": image, "clean": image}

    @property
    def capture_blocks(self) -> tuple[int, ...] | None:
        """Blocks that attention is read from; None for all."""
        shape = self.sized.shape
        if self.blocks == "all":
            return None
        return choose_blocks(
            self.blocks,
            double=shape.double,
            single=shape.single,
            feature_block=self.sized.feature_block,
        )

    def spec(self) -> ModelSpec:
        """Describe the model as an opened checkpoint would."""
        sized = self.sized
        return ModelSpec(
            name=f"{self.model}, random weights",
            family=sized.family,
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
                max_length=sized.prompt_tokens,
                pad_id=0,
                tokenizer="",
                padding="zeros" if self.shared_padding else "tokens",
                shared_padding=self.shared_padding,
            ),
            text_dim=sized.text_dim,
            prompt_dim=sized.prompt_dim,
            latent_channels=sized.latent_channels,
            double_blocks=sized.shape.double,
            single_blocks=sized.shape.single,
            feature_block=sized.feature_block,
            feature_dim=sized.shape.heads * sized.shape.head_dim,
            prompt_mask=sized.real_tokens is not None,
            capture_blocks=self.capture_blocks,
            noisy_grid=self.noisy_grid,
        )

    def empty_step(self, constants: Constants, precision: Precision) -> nn.Module:
        """Build the single step with parameters on the meta device, in their types."""
        sized = self.sized
        if self.capture_blocks is not None:
            double = sized.shape.double
            last = last_block(self.capture_blocks, double=double, feature_block=sized.feature_block)
            sized = sized.first_blocks(last + 1 - double)
        step = build_empty(lambda: sized.build(constants, precision))
        stored = precision.compute
        apply_precision(step, precision, lambda _: stored, into_stream=sized.into_stream)
        return step

    def feeds(self, draw: Draw) -> dict[str, torch.Tensor]:
        """Draw inputs; a prompt that has padding has zeros there, and a mask that says so."""
        sized, tokens = self.sized, self.tokens

        def normal(*shape: int) -> torch.Tensor:
            return draw((1, *shape), torch.float32)

        latents = {
            "clean_latents": normal(tokens["clean"], sized.latent_channels),
            "noise": normal(tokens["noisy"], sized.latent_channels),
        }
        embeds = normal(tokens["prompt"], sized.prompt_dim)
        rows, columns = (
            torch.arange(each, dtype=torch.float32, device=embeds.device) for each in self.grid_hw
        )
        ones = torch.ones(1, tokens["prompt"], device=embeds.device)
        rest = {"prompt_weights": ones, "positions": torch.cartesian_prod(rows, columns)}
        if sized.real_tokens is not None:
            mask = ones.clone()
            mask[:, sized.real_tokens :] = 0
            embeds = embeds * mask.unsqueeze(-1)
            rest["prompt_mask"] = mask
        if sized.modulation_dim:
            # Shifts, scales and gates of the size that trained ones have.
            rest["modulation"] = 0.3 * normal(sized.modulation_dim)
        return {**latents, "prompt_embeds": embeds, **rest}


def count_flop(case: CaptureCase, variant: Variant, precision: Precision) -> int:
    """Count one pass's multiplications and additions in matrix products and attentions.

    Every product that the module asks for is counted by its shapes; nothing is computed.
    """

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    step = case.empty_step(case.sized.constants(draw, precision), precision).to("meta")
    module = capturing(step, case.spec(), variant, precision).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(**case.feeds(draw))
    return counter.get_total_flops()


class RandomModel:
    """The single step of one case, with weights, and inputs for it."""

    def __init__(self, case: CaptureCase, precision: Precision, device: str) -> None:
        self.case, self.precision, self.device = case, precision, device
        self.spec = case.spec()
        generator = torch.Generator(device).manual_seed(_SEED)

        def draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        constants = case.sized.constants(draw, precision)
        self._constants = tuple(constants)
        self.step = case.empty_step(constants, precision)
        _fill(self.step, generator, case.sized.modulation)
        self.step.to(device)
        self.feeds = case.feeds(draw)

    def module(self, variant: Variant) -> nn.Module:
        """Return the step with one way of capturing, ready to run on `feeds`."""
        return capturing(self.step, self.spec, variant, self.precision).eval()

    @property
    def nbytes(self) -> int:
        """Size of the weights."""
        return sum(value.nbytes for value in self.step.parameters())

    def part(self) -> Part:
        """Return a twin without weights, as the exporter traces it; rules name the weights."""
        constants = {name: self.step.get_buffer(name).cpu() for name in self._constants}
        twin = self.case.empty_step(constants, self.precision)
        return Part("transformer", twin, dict(self.step.named_parameters()))

    def inputs(self) -> dict[str, Input]:
        """Inputs of a graph of this fixed size."""
        return {name: Input(tuple(value.shape), {}) for name, value in self.feeds.items()}


def _fill(module: nn.Module, generator: torch.Generator, modulation: tuple[str, ...]) -> None:
    """Give every parameter numbers as a trained model has them, on the generator's device.

    Unit gain, but for modulation; scales near one, biases near zero.
    """
    for name, empty in list(module.named_parameters()):
        value = torch.empty_like(empty, device=generator.device).normal_(generator=generator)
        owner, _, last = name.rpartition(".")
        if last == "bias":
            value = value.mul_(0.02)
        elif empty.ndim < 2:
            value = 1 + 0.02 * value
        else:
            gain = 0.5 if owner.endswith(modulation) else 1.0
            value = value.mul_(gain * empty.shape[1] ** -0.5)
        module.get_submodule(owner)._parameters[last] = nn.Parameter(value, requires_grad=False)
