"""What FLUX.2-klein's checkpoints say of themselves, and whether their parts fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import Qwen2TokenizerFast

from rism.export.checkpoint import Checkpoint
from rism.export.errors import CheckpointError
from rism.export.families.flux2_files import KleinFiles
from rism.export.files import read_json
from rism.export.prompts import prompt_rules
from rism.export.spec import FamilySpec, ModelSpec
from rism.runtime.manifest import Geometry

__all__ = ["check_parts", "make_spec", "out_layers", "read_settings"]

# l' of the paper is block 20 of 32; other depths keep the proportion.
_FEATURE_DEPTH = 20 / 32
_MAX_ASPECT = 8.0  # as Flux2ImageProcessor.check_image_input
_LICENCES = {
    "hub:black-forest-labs/FLUX.2-klein-4B": "Apache-2.0",
    "hub:black-forest-labs/FLUX.2-klein-base-4B": "Apache-2.0",
    "hub:black-forest-labs/FLUX.2-klein-9B": "FLUX Non-Commercial License",
    "hub:black-forest-labs/FLUX.2-klein-base-9B": "FLUX Non-Commercial License",
}
# What the published pipelines take as defaults. A checkpoint of another size says its own in
# a file `rism.json` beside model_index.json.
_DEFAULTS: dict[str, Any] = {
    "name": None,
    "licence": "see the model card",
    "demonstrator": False,
    "size_level": 1024,
    "resize": "shrink",
    "remainder": "crop",
    "max_sequence_length": 512,
    "text_encoder_out_layers": [9, 18, 27],
    "feature_block": None,
    "tau": 0.8,
    "precision": None,  # bfloat16 as published; float32 for a demonstrator, which runs on CPUs
}


def read_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The published defaults, and what the checkpoint says of itself.

    Raises:
        CheckpointError: Its rism.json has keys that are not known.
    """
    folder = checkpoint.folder
    own = read_json(folder / "rism.json") if (folder / "rism.json").exists() else {}
    unknown = sorted(set(own) - set(_DEFAULTS))
    if unknown:
        raise CheckpointError(
            f"{folder / 'rism.json'} has unknown keys {unknown}, expected some of "
            f"{sorted(_DEFAULTS)}: remove them"
        )
    licence = _LICENCES.get(checkpoint.source, _DEFAULTS["licence"])
    return {**_DEFAULTS, "name": checkpoint.name, "licence": licence, **own}


def out_layers(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Hidden states of the language model that make the prompt's embedding.

    Raises:
        CheckpointError: They are not a list of small numbers.
    """
    layers = settings["text_encoder_out_layers"]
    whole = isinstance(layers, list) and 1 <= len(layers) <= 16
    if not whole or not all(isinstance(k, int) and 0 <= k < 1024 for k in layers):
        raise CheckpointError(
            "text_encoder_out_layers in rism.json is not a list of block numbers: "
            "expected one such as [9, 18, 27]"
        )
    return tuple(layers)


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
    feature_block = settings["feature_block"]
    if feature_block is None:
        feature_block = math.floor(_FEATURE_DEPTH * (double + single) + 0.5)
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
        prompt_dim=config["joint_attention_dim"],
        latent_channels=config["in_channels"],
        double_blocks=double,
        single_blocks=single,
        feature_block=feature_block,
        feature_dim=config["num_attention_heads"] * config["attention_head_dim"],
        tau=settings["tau"],
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
