"""The reference of Step1X-Edit: the libraries' text encoder and autoencoder, the transcribed DiT.

Prompts are made as published, with the classes of transformers and not with the runtime's: the
parity gate compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import DynamicCache, Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from rism.export.checkpoint.chat_template import tokenizer_json
from rism.export.checkpoint.layer_streaming import stream_weights
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.families.step1x import reference as reference
from rism.export.families.step1x.reference_blocks import Weights
from rism.export.families.step1x.spec import IMAGE_TOKEN, content, prefix_text
from rism.export.precision import Precision
from rism.export.spec import ReferenceCapture, ReferenceInputs, ReferencePrompt, RgbImage
from rism.runtime.bundle.prompt_spec import VisionRules
from rism.runtime.prompt.encoder import Instruction, PromptEncoder

if TYPE_CHECKING:
    from rism.export.families.step1x.model import Step1XModel

_QUOTES = "\"'“”"
# Folded into constants by the exporter from unrounded weights, and not rounded after.
_FOLDED = ("time_in.", "connector.S.t_embedder.")

Prefix = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Processed:
    """Inputs of the text encoder, made by transformers from one instruction and one image.

    Attributes:
        input_ids: (1, S) int64.
        seen: (1, S) int64, one on tokens that are not masked.
        quoted: (1, S) int64, one on tokens of quoted characters.
        position_ids: (3, 1, S) int64.
        pixel_values: (P, values) float32.
        grid_thw: (1, 3) int64.
    """

    input_ids: torch.Tensor
    seen: torch.Tensor
    quoted: torch.Tensor
    position_ids: torch.Tensor
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor


class ReferenceStep1XEdit:
    """A `ReferenceModel`; weights are read from the checkpoint when a layer runs."""

    def __init__(self, model: Step1XModel, precision: Precision) -> None:
        self.model, self.precision = model, precision
        self.files, self.sizes = model.files, model.sizes
        self.version, self.spec = model.version, model.spec

    @torch.no_grad()
    def text(self, instructions: Sequence[str], image_hwc: RgbImage) -> list[ReferencePrompt]:
        """Encode instructions, one at a time, as the version's conditioner does."""
        return [self._prompt(instruction, image_hwc) for instruction in instructions]

    @torch.no_grad()
    def prefix(self, ids: torch.Tensor, positions: torch.Tensor) -> list[Prefix]:
        """Compute what later tokens ask of a prompt's first ones.

        Args:
            ids: (1, P) int64.
            positions: (3, 1, P) int64.

        Returns:
            For each layer keys, turned by their positions, and values, (heads, P, d) each.
        """
        seen, cache = (ids > 0).long(), DynamicCache()
        with _left_out(self._language, seen if self.version.flash else None):
            self._language.language_model(
                input_ids=ids,
                attention_mask=seen if self.version.masks_attention else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    @torch.no_grad()
    def image_embeds(self, image_hwc: RgbImage) -> torch.Tensor:
        """Embeddings that replace the image's tokens in the prompt, (V, E)."""
        pixels, grid = self._pixels(image_hwc)
        found: torch.Tensor = self._language.visual(pixels, grid_thw=grid).pooler_output
        return found

    @torch.no_grad()
    def vae_latents(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Images (1, 3, H, W) in [-1, 1] to shifted, scaled and packed latents (1, N_v, C)."""
        vae = build_empty(lambda: AutoencoderKL.from_config(dict(self.files.vae_config)))
        vae.decoder = vae.post_quant_conv = None  # not needed, and not read from a makers' file
        stream_weights(vae, self.files.vae, self.precision)
        found = []
        for image in images:
            latents = vae.encode(image).latent_dist.mode()
            latents = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
            _, channels, height, width = latents.shape
            rows = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # (1, c, h, w, 2, 2)
            packed = rows.permute(0, 2, 3, 1, 4, 5)
            found.append(packed.reshape(1, height * width // 4, 4 * channels))
        return found

    def dit(self, inputs: Sequence[ReferenceInputs], feature_block: int) -> list[ReferenceCapture]:
        """Run the whole transformer on each input."""
        return [self._capture(self._transformer, given, feature_block) for given in inputs]

    @cached_property
    def _transformer(self) -> reference.ReferenceStep1X:
        tensors = reference.makers_tensors(self.model.transformer_store)
        rounded = self.model.transformer(self.precision).rounded_tensors
        weights = Weights(tensors, self.precision, _FOLDED, rounded=rounded)
        return reference.ReferenceStep1X(self.sizes, weights)

    def _capture(
        self, model: reference.ReferenceStep1X, given: ReferenceInputs, feature_block: int
    ) -> ReferenceCapture:
        prompt = given.prompt
        assert prompt.mask is not None, "prompts of this model have a mask"
        embeds, hidden = prompt.embeds, self.sizes.connector.hidden
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in given.grid_hw))
        noisy = torch.nn.functional.pad(grid, (1, 0))
        clean = {
            "1.0": noisy,
            "1.1": noisy + 1,
            "1.2": torch.nn.functional.pad(grid, (1, 0), value=1.0),
        }[self.version.name]
        own = prompt.positions
        with torch.no_grad():
            record = model(
                given.clean_latents,
                given.noise,
                embeds,
                prompt.mask,
                torch.zeros(embeds.shape[1], 3) if own is None else own,
                noisy[given.noisy_tokens],
                clean,
                self.spec.timestep,
                embeds[..., hidden:] if self.sizes.mapping else None,
                feature_block=feature_block,
            )
        return record.capture(given.prompt_weights)

    @cached_property
    def _language(self) -> Qwen2_5_VLModel:
        model = build_empty(lambda: Qwen2_5_VLModel(self.model.text_config()))
        parts = self.model.text_encoder(self.precision), self.model.vision_encoder(self.precision)
        rounded = parts[0].rounded_tensors | parts[1].rounded_tensors
        stream_weights(model, self.model.text_store, self.precision, rounded=rounded)
        return model

    def _pixels(self, image_hwc: RgbImage) -> tuple[torch.Tensor, torch.Tensor]:
        """The processor's pixel values of an image at the model's size, and their grid."""
        rules = self._rules
        image = Image.fromarray(image_hwc)
        if self.version.align:
            image = image.resize(_aligned(image.size, rules.cell_px))
        given = {k: v for k, v in self.model.preprocessor.items() if k in _PROCESSOR_KEYS}
        limits = {"shortest_edge": rules.min_pixels, "longest_edge": rules.max_pixels}
        ours = self.version.arithmetic == "torchvision"
        processor = Qwen2VLImageProcessorPil(**given, size=limits, do_resize=not ours)
        if ours:
            image = _resized(image, rules)
        found = processor(images=[image], return_tensors="pt")
        return found["pixel_values"], found["image_grid_thw"]

    @property
    def _rules(self) -> VisionRules:
        rules = self.spec.prompt.vision
        assert rules is not None, "this family's text encoder takes the image"
        return rules

    def _ids(self, instruction: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (1, S) with the image's among them, and which are of quoted characters."""
        parts = content(self.version, prefix_text(self.version), instruction)
        text = self.model.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}],
            chat_template=self.model.chat_template,
            tokenize=False,
            add_generation_prompt=True,
            add_vision_id=self.version.vision_id,
        )
        quotes = self.spec.prompt.quotes
        if quotes is not None and any(mark in text[quotes.start :] for mark in _QUOTES):
            # How quoted words are cut is tested in tests/runtime/prompt/test_quotes.py.
            encoder = PromptEncoder(self.spec.prompt, tokenizer_json(self.model.tokenizer).encode())
            said = Instruction(instruction, instruction, 0)
            found = encoder.tokenize([said], image_tokens=tokens)
            return torch.from_numpy(found.input_ids), torch.from_numpy(found.quoted_mask)
        ids = self.model.tokenizer(
            text.replace(IMAGE_TOKEN, tokens * IMAGE_TOKEN), return_tensors="pt"
        ).input_ids
        return ids, torch.zeros_like(ids)

    def processed(self, instruction: str, image_hwc: RgbImage) -> Processed:
        """Return what the library's own classes make of an instruction about an image."""
        pixels, grid = self._pixels(image_hwc)
        tokens = int(grid.prod()) // self._rules.merge**2
        ids, quoted = self._ids(instruction, tokens)
        pictured = (ids == self._language.config.image_token_id).int()
        seen = (ids > 0).long()
        positions, _ = self._language.get_rope_index(
            ids, mm_token_type_ids=pictured, image_grid_thw=grid, attention_mask=seen
        )
        # Positions of masked tokens: 1 in the pinned releases, 0 in the installed one.
        return Processed(ids, seen, quoted, positions.where(seen > 0, 1), pixels, grid)

    def _prompt(self, instruction: str, image_hwc: RgbImage) -> ReferencePrompt:
        rules, given = self.spec.prompt, self.processed(instruction, image_hwc)
        with _left_out(self._language, given.seen if self.version.flash else None):
            hidden = self._language(
                input_ids=given.input_ids,
                attention_mask=given.seen if self.version.masks_attention else None,
                position_ids=given.position_ids,
                pixel_values=given.pixel_values,
                image_grid_thw=given.grid_thw,
            ).last_hidden_state[0, rules.drop :]
        if self.sizes.mapping:
            mapped = self._mapped(given.input_ids, given.quoted)
            hidden = torch.cat([hidden, mapped[rules.drop :]], dim=-1)
        length = len(hidden)
        padding = rules.max_length - length if rules.padding == "zeros" else 0
        modulation = self._transformer.modulation(
            hidden[None], torch.ones(1, length), self.spec.timestep
        )
        return ReferencePrompt(
            torch.nn.functional.pad(hidden, (0, 0, 0, padding)),
            torch.cat([torch.ones(length), torch.zeros(padding)]),
            self._places(given, image_hwc) if rules.positions == "grid" else None,
            modulation[0],
        )

    def _mapped(self, ids: torch.Tensor, quoted: torch.Tensor) -> torch.Tensor:
        """The mapped embeddings of quoted tokens, zeros elsewhere: (S, W)."""
        dtype = self.precision.storage(torch.bfloat16)
        weight, bias = (
            self.files.transformer[f"text_token_mapping.{kind}"].read()
            for kind in ("weight", "bias")
        )
        bias = bias.to(self.precision.stream).float()
        words = self._language.get_input_embeddings()(ids)[0]
        mapped = torch.nn.functional.linear(words, weight.to(dtype).float(), bias)
        return mapped * quoted[0, :, None]

    def _places(self, given: Processed, image_hwc: RgbImage) -> torch.Tensor:
        """Positions of the prompt on the transformer's axes, by the published matrices."""
        positions, grid = given.position_ids[:, 0], given.grid_thw[0]
        pictured = given.input_ids[0] == self._language.config.image_token_id
        drop, cell = self.spec.prompt.drop, float(self._rules.cell_px)
        places = torch.zeros(positions.shape[1] - drop, 3, dtype=torch.float64)
        times = positions[0, drop:]
        places[:, 0] = times - (times.max() + 1)
        rows, columns = (int(n) // self._rules.merge for n in grid[1:])
        height, width = image_hwc.shape[:2]
        seen = torch.tensor([columns * cell, rows * cell], dtype=torch.float64)
        source = torch.tensor([width, height], dtype=torch.float64)
        scale = (seen - 1) / (source - 1)
        to_cells = torch.tensor(
            [
                [scale[0] / cell, 0, -(cell - 1) / 2 / cell],
                [0, scale[1] / cell, -(cell - 1) / 2 / cell],
                [0, 0, 1],
            ],
            dtype=torch.float64,
        )
        to_tokens = torch.tensor(
            [[1 / 16, 0, -11 / 16], [0, 1 / 16, -11 / 16], [0, 0, 1]], dtype=torch.float64
        )
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
        points = torch.cat([torch.from_numpy(cells).double(), torch.ones(len(cells), 1)], 1)
        x, y, _ = (to_tokens @ to_cells.inverse() @ points.T).unbind(0)
        places[pictured[drop:], 1:] = torch.stack([y, x], 1)
        return places.float()


@contextmanager
def _left_out(model: Qwen2_5_VLModel, seen: torch.Tensor | None) -> Iterator[None]:
    """Give zeros for masked tokens' attention, as flash attention does; None for no such thing."""

    def zeroed(_module: Any, _args: Any, out: tuple[torch.Tensor, Any]) -> Any:
        assert seen is not None
        return out[0].masked_fill(seen[..., None] == 0, 0.0), *out[1:]

    layers = [] if seen is None else list(model.language_model.layers)
    hooks = [layer.self_attn.register_forward_hook(zeroed) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _resized(image: Image.Image, rules: VisionRules) -> Image.Image:
    """Bring an image within the limits as torchvision does: by torch's resize of 8 bits."""
    size = smart_resize(
        image.height,
        image.width,
        factor=rules.cell_px,
        min_pixels=rules.min_pixels,
        max_pixels=rules.max_pixels,
    )
    if size == (image.height, image.width):
        return image
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(planes, size, mode=rules.resample, antialias=True)
    return Image.fromarray(found[0].permute(1, 2, 0).numpy())


_PROCESSOR_KEYS = (
    "patch_size",
    "merge_size",
    "temporal_patch_size",
    "image_mean",
    "image_std",
    "resample",
)


def _aligned(size_wh: tuple[int, int], cell: int) -> tuple[int, int]:
    """Sides as whole cells, as the conditioner makes them of images of ordinary size."""
    width, height = (max(cell, round(side / cell) * cell) for side in size_wh)
    if width * height < 4 * cell * cell:
        scale = (4 * cell * cell / (size_wh[0] * size_wh[1])) ** 0.5
        width, height = (int(np.ceil(side * scale / cell)) * cell for side in size_wh)
    return width, height
