"""What the parity gate feeds to graphs and to PyTorch: images, prompts, and their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rism.export.capture_blocks import noisy_tokens
from rism.export.spec import ModelSpec, PromptTokens, ReferenceInputs, ReferencePrompt, RgbImage
from rism.runtime.image import vision_patches
from rism.runtime.prompt import position_ids
from rism.runtime.prompt.encoder import EncodedPrompts, PromptEncoder

Arrays = dict[str, npt.NDArray[Any]]

_EXPRESSIONS = ("the green van", "the small red dog on the left")
_GRIDS = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.7))


@dataclass(frozen=True)
class Samples:
    """An image at the model's size, and what is asked of it."""

    grid_hw: tuple[int, int]
    size_wh: tuple[int, int]
    picture: RgbImage
    image: torch.Tensor  # (1, 3, h, w), normalised
    expressions: tuple[str, ...]
    instructions: tuple[str, ...]


def draw(spec: ModelSpec, *, lean: bool) -> list[Samples]:
    """Smooth random images of three aspect ratios, a fraction of the model's own size.

    Args:
        spec: the model.
        lean: one small image only.
    """
    geometry = spec.geometry
    if geometry.sizes and not lean:
        sizes = list(geometry.sizes)
    else:
        side = min(geometry.size_level, (8 if lean else 16) * geometry.token_px)
        sizes = [_sized(side, ratio, geometry.multiple_px) for ratio in _GRIDS]
    if lean:
        sizes = sizes[-1:]
    count = 1 if lean or geometry.sizes else len(_EXPRESSIONS)
    return [_sample(spec, number, size, count) for number, size in enumerate(sizes)]


def _sized(side: int, ratio: tuple[float, float], multiple: int) -> tuple[int, int]:
    scale = side / (ratio[0] * ratio[1]) ** 0.5
    width, height = (max(2, int(scale * part) // multiple) * multiple for part in ratio)
    return width, height


def _sample(spec: ModelSpec, number: int, size_wh: tuple[int, int], count: int) -> Samples:
    geometry = spec.geometry
    rng = np.random.default_rng(number)
    coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 6, 6)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=size_wh[::-1], mode="bicubic")
    picture = ((smooth.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)[0].permute(1, 2, 0)
    image = (picture.permute(2, 0, 1)[None].float() / 255 - geometry.mean) / geometry.std
    texts = _EXPRESSIONS[:count]
    return Samples(
        (size_wh[1] // geometry.token_px, size_wh[0] // geometry.token_px),
        size_wh,
        picture.numpy(),
        image,
        texts,
        tuple(spec.prompt.template.replace("{expression}", text) for text in texts),
    )


def vision_feeds(spec: ModelSpec, sample: Samples) -> tuple[Arrays, tuple[int, int]]:
    """Return what the vision encoder is given of an image, and the grid of its patches."""
    rules = spec.prompt.vision
    assert rules is not None, "only models whose text encoder looks are asked"
    view = vision_patches.view(sample.picture, sample.size_wh, rules)
    feeds: Arrays = {
        "pixel_values": vision_patches.pixel_values(view, rules),
        "patch_positions": vision_patches.patch_positions(view.grid_hw, rules),
    }
    return feeds, view.grid_hw


def text_feeds(
    spec: ModelSpec, tokenizer_json: str, sample: Samples, image_embeds: torch.Tensor | None
) -> tuple[Arrays, EncodedPrompts]:
    """Return what the lean runtime gives the text encoder for a sample's expressions."""
    rules = spec.prompt
    prompts = PromptEncoder(rules, tokenizer_json.encode())
    said = [prompts.instruct(text) for text in sample.expressions]
    if rules.vision is None or image_embeds is None:
        encoded = prompts.tokenize(said)
        ids = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
        return ids, encoded
    _, grid_hw = vision_feeds(spec, sample)
    encoded = prompts.tokenize(said, image_tokens=len(image_embeds))
    assert prompts.image_token_id is not None, "an encoder with rules for pictures has it"
    feeds: Arrays = {
        "input_ids": encoded.input_ids,
        "attention_mask": encoded.attention_mask,
        "position_ids": position_ids.position_ids(
            encoded.input_ids,
            encoded.seen_mask,
            image_token_id=prompts.image_token_id,
            grid_hw=grid_hw,
            merge=rules.vision.merge,
            unseen_position=rules.unseen_position,
        ),
        "image_embeds": image_embeds.numpy(),
    }
    if spec.prompt_dim != spec.text_dim:
        feeds["quoted_mask"] = encoded.quoted_mask
    return feeds, encoded


def inputs_of(
    sample: Samples,
    clean: torch.Tensor,
    prompts: Sequence[ReferencePrompt],
    noise: npt.NDArray[np.float32],
    noisy_grid: int = 1,
) -> list[ReferenceInputs]:
    """Put a sample's latents and prompts together; prompts of one length make one batch."""
    found = []
    kept = noisy_tokens(sample.grid_hw, noisy_grid)
    for tokens in batches(prompts):
        count, length = tokens.embeds.shape[:2]
        rng = np.random.default_rng(7)
        # Uneven weights: an output that ignored them would not pass.
        weights = rng.uniform(0.5, 1, (count, length)).astype(np.float32)
        if tokens.mask is not None:  # all padding has one weight, so that one row can stand for it
            weights[tokens.mask.numpy() == 0] = 0.75
        found.append(
            ReferenceInputs(
                clean_latents=clean.expand(count, -1, -1).contiguous(),
                noise=torch.from_numpy(noise[None, kept].copy()),
                prompt=tokens,
                prompt_weights=torch.from_numpy(weights),
                grid_hw=sample.grid_hw,
                noisy_tokens=torch.from_numpy(kept),
            )
        )
    return found


def batches(prompts: Sequence[ReferencePrompt]) -> Iterator[PromptTokens]:
    """Put prompts of one length together."""
    by_length: dict[int, list[ReferencePrompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt.embeds), []).append(prompt)
    for some in by_length.values():
        masks = [prompt.mask for prompt in some if prompt.mask is not None]
        modulations = [prompt.modulation for prompt in some if prompt.modulation is not None]
        yield PromptTokens(
            torch.stack([prompt.embeds for prompt in some]),
            torch.stack(masks) if masks else None,
            some[0].positions,
            torch.stack(modulations) if modulations else None,
        )


def transformer_feeds(
    inputs: ReferenceInputs,
    *,
    noise: npt.NDArray[np.float32] | None = None,
    shared_padding: bool = False,
) -> Arrays:
    """Return the same inputs under the names of docs/bundle.md, step 5; without tau.

    Args:
        inputs: the reference's.
        noise: (rows, C), the bundle's, where that is not the reference's.
        shared_padding: see `PromptRules`.
    """
    given = inputs.prompt.embeds.shape[1]
    if shared_padding and inputs.prompt.mask is not None:
        given = min(given, int(inputs.prompt.mask.sum(1).max()) + 1)
    rows, columns = np.indices(inputs.grid_hw)
    feeds = {
        "clean_latents": inputs.clean_latents.numpy(),
        "noise": inputs.noise.numpy() if noise is None else noise[None, : rows.size],
        "prompt_embeds": inputs.prompt.embeds[:, :given].numpy(),
        "prompt_weights": inputs.prompt_weights[:, :given].numpy(),
        "positions": np.stack([rows, columns], -1).reshape(-1, 2).astype(np.float32),
    }
    if inputs.prompt.mask is not None:
        feeds["prompt_mask"] = inputs.prompt.mask[:, :given].numpy()
    if inputs.prompt.positions is not None:
        feeds["prompt_positions"] = inputs.prompt.positions.numpy()
    if inputs.prompt.modulation is not None:
        feeds["modulation"] = inputs.prompt.modulation.numpy()
    return feeds
