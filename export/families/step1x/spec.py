"""A Step1X-Edit checkpoint's settings and sizes, put together with its version's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from rism.export.checkpoint.chat_template import TEMPLATE, cut_at_mark
from rism.export.checkpoint.locate import Checkpoint
from rism.export.errors import CheckpointError
from rism.export.families.rism_json import (
    COMMON,
    feature_block,
    flag,
    nullable,
    read_settings,
    whole,
)
from rism.export.families.step1x.files import Step1XFiles
from rism.export.families.step1x.versions import TEXTS, Version
from rism.export.family import FamilySpec
from rism.export.spec import ModelSpec
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.bundle.prompt_spec import RESAMPLES, PromptRules, QuoteRules, VisionRules

# l' of the paper is block 40 of 57; other depths keep the proportion.
_FEATURE_DEPTH = 40 / 57
_MAX_ASPECT = 8.0
# Pillow's numbers, as preprocessor_config.json has them.
_FILTERS = dict(zip((0, 4, 2, 5, 3, 1), RESAMPLES, strict=True))
IMAGE_TOKEN = "<|image_pad|>"


def step1x_settings(checkpoint: Checkpoint, family: FamilySpec, version: Version) -> dict[str, Any]:
    """The published defaults of a version, updated with the checkpoint's rism.json."""
    known = COMMON | {
        "size_level": whole(version.size_level, 8, 8192),
        "max_sequence_length": whole(version.max_length, 1, 8192),
        "drop_tokens": whole(version.drop, 0, 8192),
        "min_pixels": nullable(whole(None, 1, 2**24)),
        "max_pixels": nullable(whole(None, 1, 2**24)),
        "connector_heads": nullable(whole(None, 1, 1024)),
        "vision_id": flag(version.vision_id),
    }
    return read_settings(checkpoint, family, known)


def make_spec(
    family: FamilySpec,
    version: Version,
    settings: Mapping[str, Any],
    files: Step1XFiles,
    *,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    preprocessor: Mapping[str, Any],
    saved: bool,
) -> ModelSpec:
    """Put a version's rules, a checkpoint's sizes and its settings together.

    Args:
        family: of the version.
        version: as the settings leave it.
        settings: of `step1x_settings`.
        files: the checkpoint's.
        tokenizer: of the language model.
        chat_template: likewise.
        preprocessor: its preprocessor_config.json.
        saved: whether that was saved with the model, and is not Qwen's own.

    Raises:
        CheckpointError: Parts that do not go together, or an incomplete configuration.
    """
    sizes, token_px = files.sizes, 2 ** len(files.vae_config["block_out_channels"])
    return ModelSpec(
        name=settings["name"],
        family=family,
        licence=settings["licence"],
        demonstrator=settings["demonstrator"],
        geometry=Geometry(
            size_level=settings["size_level"],
            resize="always",
            remainder="stretch",
            multiple_px=token_px,
            token_px=token_px,
            resample=version.resample,
            max_aspect=_MAX_ASPECT,
            mean=0.5,
            std=0.5,
            rounding="ceil",
            resize_in=version.resize_in,
        ),
        prompt=_prompt(
            version,
            settings,
            tokenizer,
            chat_template,
            _vision(version, settings, preprocessor, saved=saved),
        ),
        text_dim=files.text_config().text_config.hidden_size,
        prompt_dim=sizes.connector.hidden + sizes.mapping,
        latent_channels=sizes.in_channels,
        double_blocks=sizes.double,
        single_blocks=sizes.single,
        feature_block=feature_block(
            settings, depth=_FEATURE_DEPTH, blocks=sizes.double + sizes.single
        ),
        feature_dim=sizes.width,
        prompt_mask=True,
        tau=settings["tau"],
        confidence=settings["confidence"],
        scope=settings["scope"],
    )


def _prompt(
    version: Version,
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    vision: VisionRules,
) -> PromptRules:
    before = prefix_text(version)
    prefix, suffix = cut_at_mark(
        tokenizer,
        lambda mark: content(version, before, mark),
        chat_template=chat_template,
        add_vision_id=version.vision_id,
    )
    if (prefix + suffix).count(IMAGE_TOKEN) != 1:
        raise CheckpointError(
            f"the chat template does not put one {IMAGE_TOKEN} where the image is: "
            "expected that of Qwen2.5-VL"
        )
    style, start = version.quotes
    return PromptRules(
        template=TEMPLATE,
        prefix=prefix,
        suffix=suffix,
        max_length=settings["max_sequence_length"],
        pad_id=int(tokenizer.pad_token_id or 0),
        tokenizer="tokenizer.json",
        drop=settings["drop_tokens"],
        padding=version.padding,
        shared_padding=version.padding == "zeros",
        unseen_id=0,
        unseen_attended=not version.masks_attention,
        unseen_position=1,
        positions="none" if version.prompt_axes else "grid",
        grid_offset_px=0.0 if version.prompt_axes else 11.0,
        quotes=QuoteRules(style, len(before) if start is None else start),
        vision=vision,
    )


def prefix_text(version: Version) -> str:
    """Return the text that stands before every instruction."""
    return (TEXTS / version.prefix).read_bytes().decode("utf-8")


def content(version: Version, before: str, instruction: str) -> list[dict[str, str]]:
    """Return a message's parts, in the version's order."""
    image = {"type": "image"}
    if version.image_first:
        texts = [{"type": "text", "text": text} for text in (before, instruction)]
        return [texts[0], image, texts[1]]
    return [{"type": "text", "text": f"{before} {instruction}"}, image]


def _vision(
    version: Version, settings: Mapping[str, Any], preprocessor: Mapping[str, Any], *, saved: bool
) -> VisionRules:
    try:
        patch, merge = int(preprocessor["patch_size"]), int(preprocessor["merge_size"])
        least, most = (cells * (patch * merge) ** 2 for cells in version.cells)
        if version.saved_cells and saved:
            size = preprocessor.get("size") or {}
            least = preprocessor.get("min_pixels") or size["shortest_edge"]
            most = preprocessor.get("max_pixels") or size["longest_edge"]
        red, green, blue = (float(value) for value in preprocessor["image_mean"])
        mean = (red, green, blue)
        red, green, blue = (float(value) for value in preprocessor["image_std"])
        return VisionRules(
            image_token=IMAGE_TOKEN,
            view_resample=version.view_resample,
            align=version.align,
            resample=_FILTERS[int(preprocessor.get("resample", 3))],
            min_pixels=settings["min_pixels"] or int(least),
            max_pixels=settings["max_pixels"] or int(most),
            patch_px=patch,
            merge=merge,
            frames=int(preprocessor["temporal_patch_size"]),
            mean=mean,
            std=(red, green, blue),
            arithmetic=version.arithmetic,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"preprocessor_config.json does not describe Qwen2.5-VL's images "
            f"({type(error).__name__}: {error}): download it again"
        ) from None
