"""A FLUX.2-klein checkpoint's settings and sizes, and whether its parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2TokenizerFast

from rism.export.checkpoint.chat_template import prompt_rules
from rism.export.errors import CheckpointError
from rism.export.families.flux2.files import KleinFiles
from rism.export.families.rism_json import COMMON, Setting, feature_block, whole
from rism.export.family import FamilySpec
from rism.export.spec import ModelSpec
from rism.runtime.bundle.manifest import Geometry

# l' of the paper is block 20 of 32; other depths keep the proportion.
_FEATURE_DEPTH = 20 / 32
_MAX_ASPECT = 8.0  # as Flux2ImageProcessor.check_image_input
# Defaults of the published pipelines. A checkpoint of another size has its own in a file
# `rism.json` beside model_index.json.
SETTINGS = COMMON | {
    "resize": Setting("shrink", lambda v: v in ("always", "shrink"), "always or shrink"),
    "remainder": Setting("crop", lambda v: v in ("stretch", "crop"), "stretch or crop"),
    "max_sequence_length": whole(512, 1, 8192),
    "text_encoder_out_layers": Setting(
        [9, 18, 27],
        lambda v: isinstance(v, list) and 1 <= len(v) <= 16 and all(_is_state(k) for k in v),
        "a list of block numbers such as [9, 18, 27]",
    ),
}


def _is_state(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 511


def make_spec(
    family: FamilySpec,
    settings: Mapping[str, Any],
    files: KleinFiles,
    tokenizer: Qwen2TokenizerFast,
) -> ModelSpec:
    """Sizes from the configurations, defaults from the settings."""
    config = files.transformer_config
    token_px = 2 ** len(files.vae_config.get("block_out_channels", (0,) * 4))
    double, single = config["num_layers"], config["num_single_layers"]
    return ModelSpec(
        name=settings["name"],
        family=family,
        licence=settings["licence"],
        demonstrator=settings["demonstrator"],
        geometry=Geometry(
            size_level=settings["size_level"],
            resize=settings["resize"],
            remainder=settings["remainder"],
            multiple_px=token_px,
            token_px=token_px,
            resample="lanczos",
            max_aspect=_MAX_ASPECT,
            mean=0.5,
            std=0.5,
        ),
        prompt=prompt_rules(tokenizer, max_length=settings["max_sequence_length"]),
        text_dim=files.text_config().hidden_size,
        prompt_dim=config["joint_attention_dim"],
        latent_channels=config["in_channels"],
        double_blocks=double,
        single_blocks=single,
        feature_block=feature_block(settings, depth=_FEATURE_DEPTH, blocks=double + single),
        feature_dim=config["num_attention_heads"] * config["attention_head_dim"],
        tau=settings["tau"],
        confidence=settings["confidence"],
        scope=settings["scope"],
    )


def check_parts(files: KleinFiles, layers: tuple[int, ...]) -> None:
    """Refuse parts that do not belong together, before anything is traced."""
    config, text = files.transformer_config, files.text_config()
    wanted, given = config["joint_attention_dim"], len(layers) * text.hidden_size
    if wanted != given:
        raise CheckpointError(
            f"the transformer expects prompt embeddings of width {wanted}, the text encoder's "
            f"hidden states {list(layers)} give {given}: the parts are of different models"
        )
    if max(layers) >= text.num_hidden_layers:
        raise CheckpointError(
            f"hidden states {list(layers)} are asked for, the text encoder has "
            f"{text.num_hidden_layers} blocks: expected smaller numbers in rism.json"
        )
    packed = 4 * files.vae_config.get("latent_channels", 32)
    if config["in_channels"] != packed:
        raise CheckpointError(
            f"the transformer takes {config['in_channels']} latent channels, the VAE packs "
            f"{packed}: the parts are of different models"
        )
    if config["guidance_embeds"]:
        raise CheckpointError(
            "the transformer has a guidance embedding, FLUX.2-klein has none: "
            "FLUX.2-dev is not supported"
        )
