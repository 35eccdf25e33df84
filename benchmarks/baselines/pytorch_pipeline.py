"""Baseline: the whole method in PyTorch, as its paper does it: no bundle, no ONNX Runtime.

Source: arXiv 2605.13122 over diffusers' Flux2KleinPipeline. The pipeline's own functions encode
the instruction and the image; one forward pass of its transformer has its attention written
out, and the clean tokens' rows of every block are kept; features are upsampled to D x H x W.

`python -m benchmarks.baselines.pytorch_pipeline IMAGE EXPRESSION MASK.npy` is one process of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from PIL import Image

from benchmarks.baselines.literal_mask import literal_mask
from rism.export.families.flux2.reference import encode_image, reference_capture

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "export" / "builtin" / "mini"
NOISE = ROOT / "runtime" / "builtin" / "mini" / "noise.f32"

Mask = npt.NDArray[np.bool_]


class PytorchPipeline:
    """The built-in FLUX.2-klein checkpoint, loaded in float32."""

    def __init__(self) -> None:
        self.settings = json.loads((CHECKPOINT / "rism.json").read_text())
        pipeline = Flux2KleinPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
        self.tokenizer, self.text = pipeline.tokenizer, pipeline.text_encoder
        self.vae, self.transformer = pipeline.vae, pipeline.transformer
        self.token_px = 2 * 2 ** (len(self.vae.config.block_out_channels) - 1)
        channels = self.transformer.config.in_channels
        self.noise = torch.from_numpy(np.fromfile(NOISE, "<f4").reshape(-1, channels))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resize as the demonstrator does (area kept, sides cut to tokens), to (1, 3, h, w)."""
        width, height = image.size
        scale = self.settings["size_level"] / (width * height) ** 0.5
        sides = [int(side * scale) // self.token_px * self.token_px for side in (width, height)]
        resized = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
        return (pixels.float() / 255 - 0.5)[None] / 0.5

    @torch.no_grad()
    def segment(self, image: Image.Image, expression: str) -> Mask:
        """Image and expression to a mask, (H, W)."""
        pixels = self.preprocess(image.convert("RGB"))
        grid_hw = (pixels.shape[2] // self.token_px, pixels.shape[3] // self.token_px)
        embeds = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            prompt=[f"remove {expression}"],
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_sequence_length=self.settings["max_sequence_length"],
            hidden_states_layers=self.settings["text_encoder_out_layers"],
        )
        latents = encode_image(self.vae, pixels)
        found = reference_capture(
            self.transformer,
            clean_latents=latents,
            noise=self.noise[None, : latents.shape[1]],
            prompt_embeds=embeds,
            prompt_weights=torch.ones(embeds.shape[:2]),
            grid_hw=grid_hw,
            feature_block=self.settings["feature_block"],
            timestep=1.0,
        )
        vectors, matrices = found.attention_vectors[0], found.transition_matrices[0]
        return literal_mask(
            (matrices @ vectors.unsqueeze(-1))[..., 0],
            found.features["mmsa"][0],
            grid_hw=grid_hw,
            size_hw=(image.height, image.width),
            tau=self.settings["tau"],
        )


def main() -> None:
    """One process: load, segment, write the mask."""
    image, expression, target = sys.argv[1:4]
    np.save(target, PytorchPipeline().segment(Image.open(image), expression))


if __name__ == "__main__":
    main()
