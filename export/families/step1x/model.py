"""Step1X-Edit, in three versions: its checkpoints, opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLModel

from rism.export.checkpoint.chat_template import open_tokenizer, tokenizer_json
from rism.export.checkpoint.json_files import read_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part, WeightRule, build_empty, cast_part
from rism.export.checkpoint.safetensors_store import ComputedTensor, TensorStore
from rism.export.errors import CheckpointError
from rism.export.families.parts import (
    TEXT_INTO_STREAM,
    VAE_INTO_STREAM,
    find_file,
    pick_blocks,
    renumber_blocks,
)
from rism.export.families.step1x import FAMILIES
from rism.export.families.step1x.connector import timestep_constants
from rism.export.families.step1x.dit import INTO_STREAM, Step1XSingleStep, expected_shapes
from rism.export.families.step1x.files import Step1XFiles, open_files
from rism.export.families.step1x.modulation import INTO_STREAM as MODULATION_INTO_STREAM
from rism.export.families.step1x.modulation import Step1XModulation
from rism.export.families.step1x.pipeline_reference import Prefix, ReferenceStep1XEdit
from rism.export.families.step1x.sizes import Step1XSizes
from rism.export.families.step1x.spec import make_spec, step1x_settings
from rism.export.families.step1x.versions import Version
from rism.export.graph.encoders import VaeEncoder
from rism.export.graph.qwen_vl import QwenVisionEncoder, QwenVlPromptEncoder
from rism.export.precision import Precision
from rism.export.spec import ModelSpec, OpenModel, ReferenceModel
from rism.runtime.prompt.encoder import Instruction, PromptEncoder

_VISION_INTO_STREAM = ("patch_embed", "attn.proj", "mlp.down_proj")
_UNLIKE = ("remove a", "1", "\u00e9", ". a", '"a" b', "\u201ca", "\u4e00", "'s", "\U0001f600")
_REFINER = "connector.S.individual_token_refiner.blocks"


@dataclass(frozen=True)
class _Blocks:
    """Which blocks of the checkpoint a model is made of."""

    double: tuple[int, ...]
    single: tuple[int, ...]
    refiner: tuple[int, ...]
    text: int
    vision: tuple[int, ...]


@dataclass(eq=False)
class Step1XModel:
    """A checkpoint, opened: an `OpenModel`."""

    files: Step1XFiles
    version: Version
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    preprocessor: Mapping[str, Any]
    blocks: _Blocks
    default_precision: str

    @cached_property
    def tokenizer_json(self) -> str:
        """See `OpenModel`."""
        return tokenizer_json(self.tokenizer)

    @property
    def sizes(self) -> Step1XSizes:
        """Sizes of the transformer made of these blocks."""
        blocks, sizes = self.blocks, self.files.sizes
        connector = replace(sizes.connector, depth=len(blocks.refiner))
        return replace(
            sizes, double=len(blocks.double), single=len(blocks.single), connector=connector
        )

    def vision_encoder(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        model = build_empty(lambda: Qwen2_5_VLModel(self.text_config()))
        module = QwenVisionEncoder(model.visual, precision)
        rules = {
            name: self.text_store[f"visual.{name}"]
            for name in module.state_dict()
            if name != "patch_embed.weight"
        }
        rules["patch_embed.weight"] = self.text_store["visual.patch_embed.proj.weight"].flattened()
        return cast_part("vision_encoder", module, rules, precision, _VISION_INTO_STREAM)

    def text_encoder(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        config, sizes = self.text_config(), self.sizes
        model = build_empty(lambda: Qwen2_5_VLModel(config))
        mapping = None
        if sizes.mapping:
            hidden = sizes.connector.hidden
            mapping = build_empty(lambda: nn.Linear(hidden, sizes.mapping))
        module = QwenVlPromptEncoder(
            model.language_model,
            image_token_id=config.image_token_id,
            drop=self.spec.prompt.drop,
            flash=self.version.flash,
            precision=precision,
            prefix=self._prefix_ids.shape[1],
            mapping=mapping,
        )
        rules: dict[str, WeightRule] = {}
        states = cache(lambda: self._prefix_states(precision))
        for name, tensor in module.state_dict().items():
            if name.startswith("prefix."):
                rules[name] = _prefix_rule(name, tensor, states)
                continue
            _, own, rest = name.partition("mapping.")
            rules[name] = (
                self.files.transformer[f"text_token_mapping.{rest}"]
                if own
                else self.text_store[f"language_model.{name}"]
            )
        return cast_part("text_encoder", module, rules, precision, TEXT_INTO_STREAM)

    def vae_encoder(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        vae = build_empty(lambda: AutoencoderKL.from_config(self.files.vae_config))
        module = VaeEncoder(vae, vae.config.shift_factor or 0.0, vae.config.scaling_factor)
        rules = {name: self.files.vae[name] for name in module.state_dict()}
        return cast_part("vae_encoder", module, rules, precision, VAE_INTO_STREAM)

    def transformer(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        store, last = self.transformer_store, len(self.blocks.single) - 1
        module = build_empty(
            lambda: Step1XSingleStep(self.sizes, self.spec.family, self._constants, precision)
        )
        rules: dict[str, WeightRule] = {}
        for name in module.state_dict():
            if name.startswith("last_attn."):
                rest = name.removeprefix("last_")
                rules[name] = store[f"single_transformer_blocks.{last}.{rest}"]
            else:
                rules[name] = store[name]
        return cast_part("transformer", module, rules, precision, INTO_STREAM)

    def modulation(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        module = build_empty(lambda: Step1XModulation(self.sizes, self._constants))
        rules: dict[str, WeightRule] = {
            # Rows of shift, scale and gate, in this order; the last gate is not needed.
            name: self.transformer_store[name].rows(0, tensor.shape[0])
            if name.startswith("single_transformer_blocks.")
            else self.transformer_store[name]
            for name, tensor in module.state_dict().items()
        }
        return cast_part("modulation", module, rules, precision, MODULATION_INTO_STREAM)

    def reference(self, precision: Precision) -> ReferenceModel:
        """See `OpenModel`."""
        return ReferenceStep1XEdit(self, precision)

    def first_blocks(self, count: int) -> OpenModel:
        """See `OpenModel`."""
        single = self.blocks.single[: count - len(self.blocks.double)]
        return replace(self, blocks=replace(self.blocks, single=single))

    def samples_of_blocks(self) -> Sequence[OpenModel]:
        """See `OpenModel`; both kinds of the vision encoder's blocks are kept, too."""
        whole = self.text_config().vision_config.fullatt_block_indexes
        windowed = [index for index in self.blocks.vision if index not in whole]
        vision = tuple(sorted({*windowed[:1], *list(whole)[:1]}))
        return [
            replace(
                self,
                spec=self.spec.of_blocks(len(double), len(single)),
                # The connector's block is kept with the smaller of the two kinds.
                blocks=_Blocks(
                    double, single, () if double else self.blocks.refiner[:1], 1, vision
                ),
            )
            for double, single in pick_blocks(self.blocks.double, self.blocks.single)
        ]

    def text_config(self) -> Any:
        """Return the language model's configuration, with these blocks."""
        return self.files.text_config(blocks=self.blocks.text, vision_blocks=self.blocks.vision)

    @cached_property
    def text_store(self) -> TensorStore:
        """The tensors of these blocks, numbered as the model built of them numbers them."""
        module = build_empty(lambda: Qwen2_5_VLModel(self.text_config()))
        places = {"visual.blocks": self.blocks.vision}
        return renumber_blocks(self.files.text, module.state_dict(), places)

    @cached_property
    def transformer_store(self) -> TensorStore:
        """The transformer's tensors, numbered in the same way."""
        places = {
            "transformer_blocks": self.blocks.double,
            "single_transformer_blocks": self.blocks.single,
            _REFINER: self.blocks.refiner,
        }
        return renumber_blocks(self.files.transformer, expected_shapes(self.sizes), places)

    @cached_property
    def _encoder(self) -> PromptEncoder:
        return PromptEncoder(self.spec.prompt, self.tokenizer_json.encode())

    @cached_property
    def _prefix_ids(self) -> torch.Tensor:
        """Tokens that begin every prompt and come before what the transformer sees, (1, P).

        An instruction follows on white space or on the image's token, over which no token
        reaches: what begins several very different ones begins all.
        """
        said = [Instruction(text, text, 0) for text in _UNLIKE]
        ids = self._encoder.tokenize(said, image_tokens=1).input_ids[:, : self.spec.prompt.drop]
        same = (ids == ids[:1]).all(0) & (ids[0] != self._encoder.image_token_id)
        return torch.from_numpy(ids[:1, : int(same.cumprod().sum())])

    def _prefix_states(self, precision: Precision) -> list[Prefix]:
        ids = self._prefix_ids
        # Without a token of the image a prompt's positions are those of its text.
        counted = (ids > 0).long()
        places = torch.where(ids > 0, counted.cumsum(1) - 1, self.spec.prompt.unseen_position)
        return ReferenceStep1XEdit(self, precision).prefix(ids, places.expand(3, 1, -1))

    @cached_property
    def _constants(self) -> dict[str, torch.Tensor]:
        """Constants that depend on the timestep alone."""
        return timestep_constants(self.files.transformer, self.spec.timestep)


def _prefix_rule(
    name: str, like: torch.Tensor, states: Callable[[], list[Prefix]]
) -> ComputedTensor:
    """Say how keys or values of a layer, `prefix.keys_L`, come about."""
    kind, _, layer = name.removeprefix("prefix.").partition("_")

    def compute() -> torch.Tensor:
        return states()[int(layer)][kind == "values"]

    return ComputedTensor(None, name, tuple(like.shape), like.dtype, compute=compute)


def open_step1x(version: Version, checkpoint: Checkpoint) -> OpenModel:
    """Open a checkpoint of a version; see `open_files`."""
    files, family = open_files(checkpoint), FAMILIES[version.name]
    settings = step1x_settings(checkpoint, family, version)
    version = replace(version, vision_id=settings["vision_id"])
    if settings["connector_heads"] is not None:
        connector = replace(files.sizes.connector, heads=settings["connector_heads"])
        files = replace(files, sizes=replace(files.sizes, connector=connector))
    files.check()
    tokenizer, chat_template = _tokenizer(files.processors)
    preprocessor = read_json(_first(files.processors, "preprocessor_config.json"))
    spec = make_spec(
        family,
        version,
        settings,
        files,
        tokenizer=tokenizer,
        chat_template=chat_template,
        preprocessor=preprocessor,
        saved=checkpoint.transformer_file is None and not checkpoint.pipeline,
    )
    config, sizes = files.text_config(), files.sizes
    blocks = _Blocks(
        double=tuple(range(sizes.double)),
        single=tuple(range(sizes.single)),
        refiner=tuple(range(sizes.connector.depth)),
        text=config.text_config.num_hidden_layers,
        vision=tuple(range(config.vision_config.depth)),
    )
    precision = settings["precision"] or ("fp32" if spec.demonstrator else "bf16")
    return Step1XModel(
        files, version, spec, tokenizer, chat_template, preprocessor, blocks, precision
    )


def _tokenizer(folders: Sequence[Path]) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer, and the chat template: the processor's where it has one of its own."""
    folder = _first(folders, "tokenizer.json", "vocab.json").parent
    tokenizer = open_tokenizer(folder)
    template: object = tokenizer.chat_template
    if (folder / "chat_template.json").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(
            f"{folder} has no chat template, expected chat_template.json or one in "
            "tokenizer_config.json: download it again"
        )
    return tokenizer, template


def _first(folders: Sequence[Path], *names: str) -> Path:
    missing = f"{folders[0]} lacks {names[0]}: download the text encoder's processor too"
    here = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    return find_file(here[0] if here else folders[0], names, missing)
