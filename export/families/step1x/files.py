"""Finding and checking the files of a Step1X-Edit checkpoint; only headers are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from diffusers import AutoencoderKL
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.safetensors_store import (
    TensorStore,
    fake_store,
    open_folder,
    read_headers,
)
from rism.export.errors import CheckpointError
from rism.export.families.parts import (
    check_count,
    config_failure,
    find_file,
    keep_arguments,
    shapes_of,
)
from rism.export.families.step1x.dit import expected_shapes
from rism.export.families.step1x.sizes import ConnectorSizes, Step1XSizes, guess_vae, sizes_of
from rism.export.families.step1x.tensor_names import open_autoencoder, open_transformer

_AUTOENCODERS = ("vae.safetensors", "ae.safetensors")
# What the FLUX.1 autoencoder's configuration says and its tensors do not.
_VAE = {
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_PUBLISHED = Step1XSizes(
    in_channels=64,
    heads=24,
    head_dim=128,
    double=19,
    single=38,
    context=4096,
    connector=ConnectorSizes(hidden=3584, width=4096, pooled=768, heads=32, depth=2),
    scaled=True,
    mapping=0,
)


@dataclass(frozen=True)
class Step1XFiles:
    """The three parts: where their tensors are, and their configurations.

    Attributes:
        transformer: tensors under the names of the diffusers layout.
        sizes: of the transformer, but for the number of the connector's heads.
        vae: tensors under diffusers' names.
        vae_config: of `AutoencoderKL`.
        text: tensors of `Qwen2_5_VLModel`.
        text_values: of `Qwen2_5_VLConfig`.
        processors: folders that hold the tokenizer and preprocessor_config.json.
    """

    transformer: TensorStore
    sizes: Step1XSizes
    vae: TensorStore
    vae_config: dict[str, Any]
    text: TensorStore
    text_values: dict[str, Any]
    processors: tuple[Path, ...]

    def text_config(
        self, *, blocks: int | None = None, vision_blocks: tuple[int, ...] | None = None
    ) -> Qwen2_5_VLConfig:
        """Return the language model's configuration, or that of a few of its blocks.

        Args:
            blocks: how many of the language model, from the first.
            vision_blocks: which of the tower.
        """
        config = _quiet_config(self.text_values)
        if blocks is not None:
            config.text_config.num_hidden_layers = blocks
            config.text_config.layer_types = config.text_config.layer_types[:blocks]
        if vision_blocks is not None:
            whole = set(config.vision_config.fullatt_block_indexes)
            config.vision_config.depth = len(vision_blocks)
            config.vision_config.fullatt_block_indexes = [
                place for place, block in enumerate(vision_blocks) if block in whole
            ]
        return config

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the language model and its tower."""
        return shapes_of("text encoder", lambda: Qwen2_5_VLModel(self.text_config()))

    def vae_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the autoencoder."""
        return shapes_of("vae", lambda: AutoencoderKL.from_config(self.vae_config))

    def check(self) -> None:
        """Compare names and shapes of all tensors with what the sizes ask for.

        Raises:
            CheckpointError: They differ; the message names a tensor.
        """
        self.transformer.expect(expected_shapes(self.sizes))
        self.vae.expect_some(self.vae_shapes(), lambda name: name.startswith("encoder."))
        self.text.expect(self.text_shapes())
        width = self.text_config().text_config.hidden_size
        if width != self.sizes.connector.hidden:
            raise CheckpointError(
                f"the connector takes hidden states of width {self.sizes.connector.hidden}, the "
                f"text encoder's are {width}: the parts are of different models"
            )
        packed = 4 * int(self.vae_config["latent_channels"])
        if self.sizes.in_channels != packed:
            raise CheckpointError(
                f"the transformer takes {self.sizes.in_channels} latent channels, the VAE packs "
                f"{packed}: the parts are of different models"
            )


def _quiet_config(values: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Build a configuration; of older ones the library says in passing how it reads them."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        config: Qwen2_5_VLConfig = Qwen2_5_VLConfig.from_dict(copy.deepcopy(dict(values)))
    finally:
        transformers.logging.set_verbosity(before)
    config._attn_implementation = "eager"
    return config


def open_files(checkpoint: Checkpoint) -> Step1XFiles:
    """Open the parts of a checkpoint, in the makers' or in diffusers' layout.

    Raises:
        CheckpointError: A part is missing, cut short, or its configuration is wrong.
    """
    folder, makers = checkpoint.folder, checkpoint.transformer_file is not None
    makers = makers or bool(checkpoint.pipeline)
    language = _language(checkpoint) if makers else folder / "text_encoder"
    files = Step1XFiles(
        transformer=fake_store("transformer", {}),
        sizes=_PUBLISHED,
        vae=fake_store("vae", {}),
        vae_config=_vae_config({} if makers else read_json(folder / "vae" / "config.json")),
        text=fake_store("text_encoder", {}),
        text_values=read_json(language / "config.json"),
        processors=(language,) if makers else (folder / "processor", folder / "tokenizer"),
    )
    _check_counts(files)
    if not checkpoint.weights:
        return _planned(files, None if makers else read_json(folder / "transformer/config.json"))
    if checkpoint.transformer_file is not None:
        headers = read_headers(checkpoint.transformer_file)
        transformer = open_transformer(checkpoint.transformer_file, headers)
        missing = f"{folder} lacks {_AUTOENCODERS[0]}: download the autoencoder too"
        vae = open_autoencoder(find_file(folder, _AUTOENCODERS, missing))
        files = replace(files, vae_config=_vae_config(guess_vae(vae)))
        config: dict[str, Any] = {}
    else:
        transformer, vae = open_folder(folder / "transformer"), open_folder(folder / "vae")
        config = read_json(folder / "transformer" / "config.json")
    return replace(
        files,
        transformer=transformer,
        sizes=sizes_of(transformer, config),
        vae=vae,
        text=_language_names(open_folder(language)),
    )


def _planned(files: Step1XFiles, config: Mapping[str, Any] | None) -> Step1XFiles:
    """Configurations alone, with tensors that are not here yet."""
    sizes = files.sizes if config is None else _sizes_said(config)
    return replace(
        files,
        sizes=sizes,
        transformer=fake_store("transformer", expected_shapes(sizes)),
        vae=fake_store("vae", files.vae_shapes()),
        text=fake_store("text_encoder", files.text_shapes()),
    )


def _sizes_said(config: Mapping[str, Any]) -> Step1XSizes:
    keys = {
        "in_channels": "in_channels",
        "heads": "num_attention_heads",
        "head_dim": "attention_head_dim",
        "double": "num_layers",
        "single": "num_single_layers",
        "context": "joint_attention_dim",
    }
    try:
        said: dict[str, Any] = {
            ours: int(config[key]) for ours, key in keys.items() if key in config
        }
    except (TypeError, ValueError) as error:
        raise config_failure("transformer", error) from None
    sizes = replace(_PUBLISHED, **said, scaled=False)
    return replace(sizes, mapping=sizes.context if config.get("enable_text_token_mapping") else 0)


def _vae_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what the class knows, and fill in FLUX.1's."""
    given = keep_arguments(AutoencoderKL, config)
    levels = len(given.get("block_out_channels", (128, 256, 512, 512)))
    return {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **_VAE,
        **given,
    }


def _language(checkpoint: Checkpoint) -> Path:
    """Find Qwen2.5-VL: given, in the folder, or beside it."""
    if checkpoint.language is not None:
        return checkpoint.language
    folder = checkpoint.folder.resolve()
    for place in (folder, folder.parent):
        found = sorted(
            path
            for path in place.iterdir()
            if path.name.lower().startswith("qwen2.5-vl") and (path / "config.json").is_file()
        )
        if found:
            return found[0]
    raise CheckpointError(
        f"{checkpoint.folder} has no folder Qwen2.5-VL-7B-Instruct in it or beside it: "
        "download Qwen/Qwen2.5-VL-7B-Instruct there"
    )


def _language_names(store: TensorStore) -> TensorStore:
    """Bring both layouts of Qwen2.5-VL's names to those of `Qwen2_5_VLModel`."""
    names = {}
    for name in store:
        if name.startswith("lm_head."):
            continue  # the output layer: no text is generated
        if name.startswith("visual."):
            names[name] = name
        elif name.startswith(("model.visual.", "model.language_model.")):
            names[name.removeprefix("model.")] = name
        else:
            names[f"language_model.{name.removeprefix('model.')}"] = name
    return store.renamed(names)


def _check_counts(files: Step1XFiles) -> None:
    """Refuse absurd sizes before a model of them is built."""
    try:
        config = files.text_config()
        text, vision = config.text_config.num_hidden_layers, config.vision_config.depth
    except Exception as error:  # the library's own kinds for a wrong value
        raise config_failure("text encoder", error) from None
    check_count("text encoder", "num_hidden_layers", text)
    check_count("text encoder", "vision depth", vision)
