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
from rism.export.checkpoint.meta_modules import build_empty
from rism.export.checkpoint.safetensors_store import (
    TensorStore,
    fake_store,
    open_folder,
    read_headers,
)
from rism.export.errors import CheckpointError
from rism.export.families.flux2.single_file import open_autoencoder, open_transformer
from rism.runtime.errors import one_line

__all__ = ["KleinFiles", "open_files"]

_MOST_BLOCKS = 512
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

    def transformer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole transformer."""
        return _shapes(
            "transformer", lambda: Flux2Transformer2DModel.from_config(self.transformer_config)
        )

    def vae_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole autoencoder."""
        return _shapes("vae", lambda: AutoencoderKLFlux2.from_config(self.vae_config))

    def text_shapes(self, blocks: int | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of the language model, or of its first `blocks` blocks."""
        return _shapes("text_encoder", lambda: Qwen3ForCausalLM(self.text_config(blocks)))

    def check_tensors(self, text_blocks: int) -> None:
        """Compare names and shapes of all tensors with what the configurations ask for.

        Args:
            text_blocks: blocks of the language model that are used; of the others, and of its
                output, nothing is asked.

        Raises:
            CheckpointError: They differ; the message names a tensor.
        """
        self.transformer.expect(self.transformer_shapes(), optional=_FINAL)
        vae = self.vae_shapes()
        _expect_some(
            self.vae, vae, lambda name: name.startswith(("encoder.", "quant_conv.", "bn."))
        )
        text = self.text_shapes(text_blocks)
        _expect_some(self.text, text, lambda name: not name.startswith(("lm_head.", "model.norm.")))


def _shapes(part: str, build: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    try:
        module = build_empty(build)
    except Exception as error:  # the libraries' own kinds for a wrong value
        raise _wrong(part, error) from None
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _expect_some(
    store: TensorStore, shapes: dict[str, tuple[int, ...]], used: Callable[[str], bool]
) -> None:
    """Compare the tensors that a graph needs; the others may be there or not."""
    wanted = {name: shape for name, shape in shapes.items() if used(name)}
    store.only(wanted).expect(wanted, optional=["bn.num_batches_tracked"])


def open_files(checkpoint: Checkpoint) -> KleinFiles:
    """Open the parts of a checkpoint.

    A folder in diffusers' layout has `transformer/`, `vae/`, `text_encoder/` and `tokenizer/`.
    In the makers' layout one file stands for the transformer, and `ae.safetensors` (or `vae/`)
    for the autoencoder; the text encoder's folders are the same.

    Raises:
        CheckpointError: A part is missing, cut short, or its configuration is wrong.
    """
    folder = checkpoint.folder
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{folder / part} is missing, expected it beside the transformer: "
                "download the whole model"
            )
    if not checkpoint.weights:
        return _plan_files(folder)
    if checkpoint.transformer_file is None:
        transformer = open_folder(folder / "transformer")
        config = read_json(folder / "transformer" / "config.json")
    else:
        headers = read_headers(checkpoint.transformer_file)
        transformer, config = open_transformer(checkpoint.transformer_file, headers)
    vae, vae_config = _open_vae(folder)
    files = KleinFiles(
        transformer=transformer,
        transformer_config=_complete(Flux2Transformer2DModel, config),
        vae=vae,
        vae_config=_complete(AutoencoderKLFlux2, vae_config),
        text=open_folder(folder / "text_encoder"),
        text_values=read_json(folder / "text_encoder" / "config.json"),
        tokenizer=folder / "tokenizer",
    )
    _check_counts(files)
    return files


def _plan_files(folder: Path) -> KleinFiles:
    """Configurations alone, with tensors that are not here yet."""
    configs = {
        part: read_json(folder / part / "config.json")
        for part in ("transformer", "vae", "text_encoder")
    }
    empty = KleinFiles(
        transformer=fake_store("transformer", {}),
        transformer_config=_complete(Flux2Transformer2DModel, configs["transformer"]),
        vae=fake_store("vae", {}),
        vae_config=_complete(AutoencoderKLFlux2, configs["vae"]),
        text=fake_store("text_encoder", {}),
        text_values=configs["text_encoder"],
        tokenizer=folder / "tokenizer",
    )
    _check_counts(empty)
    return replace(
        empty,
        transformer=fake_store("transformer", empty.transformer_shapes()),
        vae=fake_store("vae", empty.vae_shapes()),
        text=fake_store("text_encoder", empty.text_shapes()),
    )


def _check_counts(files: KleinFiles) -> None:
    try:
        blocks = files.text_config().num_hidden_layers
    except Exception as error:  # the library's own kinds for a wrong value
        raise _wrong("text_encoder", error) from None
    _check_count("text_encoder", "num_hidden_layers", blocks)
    for key in ("num_layers", "num_single_layers"):
        _check_count("transformer", key, files.transformer_config[key])


def _open_vae(folder: Path) -> tuple[TensorStore, dict[str, Any]]:
    if (folder / "vae").is_dir():
        return open_folder(folder / "vae"), read_json(folder / "vae" / "config.json")
    for name in _AUTOENCODERS:
        if (folder / name).is_file():
            return open_autoencoder(folder / name), {}
    raise CheckpointError(
        f"{folder} has neither vae/ nor {_AUTOENCODERS[0]}: download the autoencoder too"
    )


def _complete(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Keep what the class knows and fill in its defaults, as loading it would."""
    known = signature(kind.__init__).parameters
    defaults = {k: v.default for k, v in known.items() if v.default is not Parameter.empty}
    return defaults | {key: value for key, value in config.items() if key in known}


def _check_count(part: str, key: str, value: object) -> None:
    """Refuse absurd sizes before a model of them is built."""
    if not isinstance(value, int) or not 0 <= value <= _MOST_BLOCKS:
        raise CheckpointError(
            f"{part}: {key} is {one_line(value, limit=40)}, expected a number of blocks up to "
            f"{_MOST_BLOCKS}: mend its config.json"
        )


def _wrong(part: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{part}: its configuration describes no model ({one_line(error, limit=160)}): "
        "download config.json again"
    )
