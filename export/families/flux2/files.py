"""Finding and checking the files of a FLUX.2-klein checkpoint; only headers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.safetensors_store import (
    TensorStore,
    fake_store,
    open_folder,
    read_headers,
)
from rism.export.errors import CheckpointError
from rism.export.families.flux2.single_file import open_autoencoder, open_transformer
from rism.export.families.parts import (
    check_count,
    config_failure,
    find_file,
    keep_arguments,
    shapes_of,
)

_AUTOENCODERS = ("ae.safetensors", "flux2-vae.safetensors", "flux2_ae.safetensors")
# Not part of any graph, and laid out differently in the makers' files.
_FINAL = ("norm_out.linear.weight", "proj_out.weight")


@dataclass(frozen=True)
class KleinFiles:
    """The three parts: where their tensors are, and their configurations.

    Attributes:
        transformer, vae, text: tensors under the names of diffusers and transformers.
        transformer_config: of `Flux2Transformer2DModel`, every key that is used here present.
        vae_config: of `AutoencoderKLFlux2`.
        text_values: of `Qwen3Config`.
        tokenizer: a folder.
    """

    transformer: TensorStore
    transformer_config: dict[str, Any]
    vae: TensorStore
    vae_config: dict[str, Any]
    text: TensorStore
    text_values: dict[str, Any]
    tokenizer: Path

    def text_config(self, blocks: int | None = None) -> Qwen3Config:
        """Return the language model's configuration, or that of its first `blocks` blocks."""
        values = dict(self.text_values)
        if blocks is not None:
            values["num_hidden_layers"] = blocks
            if isinstance(values.get("layer_types"), list):
                values["layer_types"] = values["layer_types"][:blocks]
        config: Qwen3Config = Qwen3Config.from_dict(values)
        config._attn_implementation = "eager"
        return config

    def shapes(self, part: str, text_blocks: int | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of "transformer", "vae" or "text_encoder", which may be of its first blocks."""
        build: dict[str, Callable[[], Any]] = {
            "transformer": lambda: Flux2Transformer2DModel.from_config(self.transformer_config),
            "vae": lambda: AutoencoderKLFlux2.from_config(self.vae_config),
            "text_encoder": lambda: Qwen3ForCausalLM(self.text_config(text_blocks)),
        }
        return shapes_of(part, build[part])

    def check_tensors(self, text_blocks: int) -> None:
        """Compare names and shapes of all tensors with what the configurations ask for.

        Args:
            text_blocks: blocks of the language model that are used; of the others, and of its
                output, nothing is asked.

        Raises:
            CheckpointError: They differ; the message names a tensor.
        """
        self.transformer.expect(self.shapes("transformer"), optional=_FINAL)
        self.vae.expect_some(
            self.shapes("vae"), lambda name: name.startswith(("encoder.", "quant_conv.", "bn."))
        )
        self.text.expect_some(
            self.shapes("text_encoder", text_blocks),
            lambda name: not name.startswith(("lm_head.", "model.norm.")),
        )


def open_files(checkpoint: Checkpoint) -> KleinFiles:
    """Open the parts of a checkpoint.

    A folder in diffusers' layout has `transformer/`, `vae/`, `text_encoder/` and `tokenizer/`.
    In the makers' layout one file stands for the transformer, and `ae.safetensors` (or `vae/`)
    for the autoencoder; the text encoder's folders are the same.

    Raises:
        CheckpointError: A part is missing, cut short, or its configuration is wrong.
    """
    folder, here = checkpoint.folder, checkpoint.weights
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{folder / part} is missing, expected it beside the transformer: "
                "download the whole model"
            )
    file = checkpoint.transformer_file
    if file is not None:
        transformer, config = open_transformer(file, read_headers(file))
    else:
        transformer = _open(folder / "transformer", here)
        config = read_json(folder / "transformer" / "config.json")
    if here and not (folder / "vae").is_dir():
        missing = f"{folder} has neither vae/ nor {_AUTOENCODERS[0]}: download the autoencoder too"
        vae, vae_config = open_autoencoder(find_file(folder, _AUTOENCODERS, missing)), {}
    else:
        vae, vae_config = _open(folder / "vae", here), read_json(folder / "vae" / "config.json")
    files = KleinFiles(
        transformer=transformer,
        transformer_config=_complete(Flux2Transformer2DModel, config),
        vae=vae,
        vae_config=_complete(AutoencoderKLFlux2, vae_config),
        text=_open(folder / "text_encoder", here),
        text_values=read_json(folder / "text_encoder" / "config.json"),
        tokenizer=folder / "tokenizer",
    )
    _check_counts(files)
    if here:
        return files
    return replace(
        files,
        transformer=fake_store("transformer", files.shapes("transformer")),
        vae=fake_store("vae", files.shapes("vae")),
        text=fake_store("text_encoder", files.shapes("text_encoder")),
    )


def _open(folder: Path, here: bool) -> TensorStore:
    return open_folder(folder) if here else fake_store(folder.name, {})


def _check_counts(files: KleinFiles) -> None:
    try:
        blocks = files.text_config().num_hidden_layers
    except Exception as error:  # the library's own kinds for a wrong value
        raise config_failure("text_encoder", error) from None
    check_count("text_encoder", "num_hidden_layers", blocks)
    for key in ("num_layers", "num_single_layers"):
        check_count("transformer", key, files.transformer_config[key])


def _complete(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Keep what the class knows and fill in its defaults, as loading it would."""
    known = signature(kind.__init__).parameters
    defaults = {k: v.default for k, v in known.items() if v.default is not Parameter.empty}
    return defaults | keep_arguments(kind, config)
