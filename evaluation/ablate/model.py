"""Runs a checkpoint in PyTorch and captures everything of the selected steps.

Images, prompts and noise are prepared by the runtime's code, with PyTorch modules as its engines.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from rism.evaluation.ablate.capture import WideCapture
from rism.evaluation.ablate.setting_masks import Pass
from rism.export.attention_capture import Spans
from rism.export.capture_blocks import noisy_tokens
from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part
from rism.export.errors import UnsupportedModelError
from rism.export.exporter import fixed_noise, open_model
from rism.export.families.find import find_checkpoint
from rism.export.precision import PRECISIONS
from rism.export.spec import ModelSpec, OpenModel, PromptTokens
from rism.runtime.engines.base import Arrays
from rism.runtime.errors import InputError, ProviderError
from rism.runtime.image import geometry
from rism.runtime.image_encoder import ImageState, text_encoder_view
from rism.runtime.prompt.embedder import PromptEmbedder
from rism.runtime.prompt.encoder import PromptEncoder, PromptState
from rism.runtime.prompt.refiner import Refiner, refine
from rism.runtime.prompt.vision_encoder import VisionEncoder
from rism.runtime.transformer_inputs import prompt_token_weights, transformer_feeds

# FLUX's published scheduler, for checkpoints without one.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


@dataclass(frozen=True)
class ModelOptions:
    """How a checkpoint is opened and run.

    Attributes:
        model: "mini", a published model's short name, a folder, a single file, or a hub id.
        precision: "fp32", "bf16", "fp16", or None for the model's own.
        device: of the transformer and the VAE, as PyTorch names it.
        text_device: of the text encoder; None for `device`.
        size_level: see `ExportOptions`.
        template: the instruction, with {expression} in it; None for the model's.
        steps: of the denoising; None for the published number.
        revision, offline: see `ExportOptions`.
    """

    model: str = "mini"
    precision: str | None = None
    device: str = "cpu"
    text_device: str | None = None
    size_level: int | None = None
    template: str | None = None
    steps: int | None = None
    revision: str | None = None
    offline: bool = False


class TorchEngine:
    """A PyTorch module of the exporter as an `Engine` of the runtime."""

    def __init__(self, module: nn.Module, output: str, device: torch.device) -> None:
        """Move a module, with inputs named as the exported graph's and one output, to a device."""
        self._module, self._output, self._device = module.to(device), output, device
        self._inputs = tuple(inspect.signature(module.forward).parameters)

    @property
    def provider(self) -> str:
        """What it runs on."""
        return f"pytorch:{self._device}"

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Engine`."""
        given = {
            name: torch.from_numpy(np.ascontiguousarray(feeds[name])).to(self._device)
            for name in self._inputs
            if name in feeds
        }
        with self._device:  # tensors that the module creates are on it too
            out = self._module(**given)
        return {self._output: out.float().cpu().numpy()}


class AblationModel:
    """An opened checkpoint with its weights."""

    def __init__(self, options: ModelOptions) -> None:
        """Find, open and load a checkpoint.

        Raises:
            CheckpointError, UnsupportedModelError: see `find_checkpoint` and `open_model`.
            ProviderError: no such device.
            InputError: the number of steps is below 1.
        """
        device = _device(options.device)
        text_device = device if options.text_device is None else _device(options.text_device)
        checkpoint = find_checkpoint(
            options.model, revision=options.revision, offline=options.offline
        )
        opened = open_model(checkpoint)
        if options.size_level is not None:
            opened.spec = opened.spec.at_level(options.size_level)
        if options.template is not None:
            opened.spec = opened.spec.with_template(options.template)
        self.checkpoint, self.device = checkpoint, device
        self.precision = PRECISIONS[options.precision or opened.default_precision]
        family = opened.spec.family
        if family.denoiser is None:
            raise UnsupportedModelError(
                f"models of the family {family.title} cannot be ablated: it has no denoiser"
            )
        self._denoiser = family.denoiser(opened, _read(checkpoint, "model_index.json", {}))
        self.steps = self._denoiser.steps if options.steps is None else options.steps
        if self.steps < 1:
            raise InputError(f"{self.steps} denoising steps were asked for, expected at least 1")
        self.spec: ModelSpec = opened.spec
        self._scheduler_config = _read(checkpoint, "scheduler/scheduler_config.json", _SCHEDULER)
        self._noise = fixed_noise(opened.spec)
        self._engines(opened, text_device)
        self._transformer = self._denoiser.whole(self.precision)
        self._transformer.part.fill().to(device)

    def _engines(self, opened: OpenModel, text_device: torch.device) -> None:
        def engine(part: Part, output: str, device: torch.device) -> TorchEngine:
            return TorchEngine(part.fill(), output, device)

        precision, rules = self.precision, opened.spec.prompt
        self._vae = engine(opened.vae_encoder(precision), "clean_latents", self.device)
        self._encoder = PromptEncoder(rules, opened.tokenizer_json.encode())
        vision_encoder, tower = None, opened.vision_encoder(precision)
        if tower is not None and rules.vision is not None:
            own = engine(tower, "image_embeds", text_device)
            token_px = opened.spec.geometry.token_px
            vision_encoder = VisionEncoder(self._encoder, rules.vision, own, token_px=token_px)
        text = engine(opened.text_encoder(precision), "prompt_embeds", text_device)
        self._vision_encoder = vision_encoder
        self._embedder = PromptEmbedder(
            self._encoder, text, max_batch=1, fixed_batch=None, vision_encoder=vision_encoder
        )

    @property
    def storage(self) -> torch.dtype:
        """Number type in which features leave the device."""
        return torch.float32 if self.precision.compute == torch.float32 else torch.float16

    def state(self, image_hwc: npt.NDArray[np.uint8]) -> ImageState:
        """Encode an image (H, W, 3), as `ImageEncoder` does.

        Raises:
            InputError: too long, too small, or too large for the noise.
        """
        rules, size_wh = self.spec.geometry, (image_hwc.shape[1], image_hwc.shape[0])
        plan = geometry.plan(size_wh, rules, max_tokens=len(self._noise))
        pixels = np.ascontiguousarray(image_hwc)
        resized = geometry.resize(pixels, plan, rules)
        image = geometry.normalise(resized, plan, rules)
        latents = self._vae.run({"image": image})["clean_latents"]
        vision = self.spec.prompt.vision
        view = None if vision is None else text_encoder_view(pixels, resized, plan, rules, vision)
        return ImageState(plan, latents, "", {}, None, view)

    def prompt(
        self,
        state: ImageState,
        expression: str,
        *,
        refiner: Refiner | None = None,
        image_hwc: npt.NDArray[np.uint8] | None = None,
    ) -> PromptState:
        """Encode an expression for an image, which a refiner gets as `image_hwc`, (H, W, 3).

        Raises:
            InputError: it is empty, too long, or has control tokens in it; or the refiner failed.
        """
        said = self._encoder.instruct(expression)
        if refiner is not None:
            tokens = 0 if self._vision_encoder is None else self._vision_encoder.image_tokens(state)
            [said] = refine(refiner, [said], image_hwc, self._encoder, image_tokens=tokens)
        return self._embedder.embed([said], state)[0][0]

    def sigmas(self, tokens: int) -> list[float]:
        """Return sigma of each step for an image of so many tokens, and the final zero."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler_config)
        shift = self._denoiser.shift(tokens, self.steps, scheduler.config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / self.steps, self.steps), mu=shift)
        return [float(sigma) for sigma in scheduler.sigmas]

    def passes(
        self,
        state: ImageState,
        prompt: PromptState,
        *,
        timesteps: Sequence[int],
        blocks: Sequence[int],
        sites: Sequence[str],
        noisy_grids: Sequence[int] = (1,),
    ) -> Iterator[Pass]:
        """Denoise from the fixed noise, and capture the selected steps.

        Only the conditional branch runs, without guidance, with Euler's update from step to step:
        x + (sigma_next - sigma) v. The time steps are below `steps` and rise; features are kept of
        these blocks and sites. For each of `noisy_grids` above 1 a pass of step 0 comes at the end,
        in which only every such row and column has noisy tokens.
        """
        feeds = transformer_feeds(
            state,
            [prompt],
            rules=replace(self.spec.prompt, shared_padding=False),
            weights=prompt_token_weights(None, [prompt]),
            noise=self._noise,
            tau=self.spec.tau,
            fixed=None,
        )
        given = {name: torch.from_numpy(value).to(self.device) for name, value in feeds.items()}
        latents, sigmas = given["noise"], self.sigmas(state.plan.tokens)
        tokens = state.plan.tokens

        def capture(noisy: int, *, watching: bool) -> WideCapture:
            return WideCapture(
                spans=Spans(prompt.embeds.shape[0], noisy, tokens),
                prompt_weights=given["prompt_weights"],
                feature_block=-1,
                precision=self.precision,
                blocks=frozenset(blocks),
                sites=tuple(sites),
                storage=self.storage,
                watching=watching,
            )

        for step in range(max(timesteps) + 1):
            found = capture(tokens, watching=step in timesteps)
            self._run(given, latents, given["positions"], sigmas[step], found)
            assert found.velocity is not None, "a whole model predicts"
            if found.watching:
                yield _on_host(step, found)
            latents = latents + (sigmas[step + 1] - sigmas[step]) * found.velocity
        for grid in noisy_grids:
            if grid > 1:
                kept = torch.from_numpy(noisy_tokens(state.plan.grid_hw, grid)).to(self.device)
                found = capture(len(kept), watching=True)
                noise, places = given["noise"][:, kept], given["positions"][kept]
                self._run(given, noise, places, sigmas[0], found)
                yield replace(_on_host(0, found), noisy_grid=grid)

    @torch.inference_mode()
    def _run(
        self,
        given: Mapping[str, torch.Tensor],
        latents: torch.Tensor,
        places: torch.Tensor,
        sigma: float,
        capture: WideCapture,
    ) -> None:
        prompt = PromptTokens(
            given["prompt_embeds"],
            given["prompt_mask"] if self.spec.prompt_mask else None,
            given.get("prompt_positions"),
        )
        self._transformer.at(sigma)
        with self.device:
            self._transformer.part.module(
                given["clean_latents"], latents, prompt, places, given["positions"], capture
            )


def _on_host(timestep: int, capture: WideCapture) -> Pass:
    def vectors(found: Sequence[torch.Tensor]) -> npt.NDArray[Any]:
        return torch.cat(list(found)).float().cpu().numpy()

    assert capture.velocity is not None, "a whole model predicts"
    return Pass(
        timestep,
        vectors(capture.attention_vectors),
        vectors(capture.propagated_vectors),
        {where: kept[0].cpu().numpy() for where, kept in capture.kept.items()},
        capture.velocity[0].cpu().numpy(),
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ProviderError(
            f"device '{name}' cannot be used ({str(error).splitlines()[0][:120]}), expected cpu, "
            "or cuda with a PyTorch that was built for it"
        ) from None
    return device


def _read(checkpoint: Checkpoint, name: str, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    file = checkpoint.folder / name
    return read_json(file) if file.is_file() else otherwise
