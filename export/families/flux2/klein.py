"""FLUX.2-klein: diffusers' Flux2KleinPipeline, its sizes read from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from rism.export.checkpoint.chat_template import open_tokenizer, tokenizer_json
from rism.export.checkpoint.locate import Checkpoint
from rism.export.checkpoint.meta_modules import Part, WeightRule, build_empty, cast_part
from rism.export.checkpoint.safetensors_store import TensorStore
from rism.export.families.flux2 import FAMILY
from rism.export.families.flux2.dit import INTO_STREAM, Flux2SingleStep
from rism.export.families.flux2.files import KleinFiles, open_files
from rism.export.families.flux2.modulation import fold_modulation
from rism.export.families.flux2.reference import ReferenceKlein
from rism.export.families.flux2.spec import SETTINGS, check_parts, make_spec
from rism.export.families.parts import (
    TEXT_INTO_STREAM,
    VAE_INTO_STREAM,
    pick_blocks,
    renumber_blocks,
)
from rism.export.families.rism_json import read_settings
from rism.export.graph.encoders import QwenPromptEncoder, VaeEncoder
from rism.export.precision import Precision
from rism.export.spec import ModelSpec, OpenModel, ReferenceModel


@dataclass(frozen=True)
class _Blocks:
    """Which blocks of the checkpoint a model is made of."""

    double: tuple[int, ...]
    single: tuple[int, ...]
    out_layers: tuple[int, ...]


@dataclass(eq=False)
class KleinModel:
    """A checkpoint, opened: an `OpenModel`."""

    files: KleinFiles
    spec: ModelSpec
    tokenizer: Qwen2TokenizerFast
    blocks: _Blocks
    default_precision: str

    @cached_property
    def tokenizer_json(self) -> str:
        """See `OpenModel`."""
        return tokenizer_json(self.tokenizer)

    def text_encoder(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        depth = max(self.blocks.out_layers)
        model = build_empty(lambda: Qwen3ForCausalLM(self.files.text_config(depth)))
        module = QwenPromptEncoder(
            model, self.blocks.out_layers, length=self.spec.prompt.max_length, precision=precision
        )
        rules = _rules(module, self.files.text, lambda name: f"model.{name}")
        return cast_part("text_encoder", module, rules, precision, TEXT_INTO_STREAM)

    def vision_encoder(self, precision: Precision) -> None:
        """See `OpenModel`: the text encoder takes no image."""

    def vae_encoder(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        store = self.files.vae
        vae = build_empty(lambda: AutoencoderKLFlux2.from_config(self.files.vae_config))
        variance = store["bn.running_var"].read().float() + vae.config.batch_norm_eps
        module = VaeEncoder(vae, store["bn.running_mean"].read().float(), 1 / variance.sqrt())
        rules = _rules(module, store, lambda name: name)
        return cast_part("vae_encoder", module, rules, precision, VAE_INTO_STREAM)

    def transformer(self, precision: Precision) -> Part:
        """See `OpenModel`."""
        transformer = build_empty(self.empty_transformer)
        modulation = {
            name: folded.to(precision.stream) for name, folded in self._modulation.items()
        }
        module = Flux2SingleStep(transformer, self.spec.family, modulation)
        rules = _rules(module, self.transformer_store, self._stored_name)
        width = self.spec.feature_dim
        fused = self.transformer_store[
            f"single_transformer_blocks.{len(self.blocks.single) - 1}.attn.to_qkv_mlp_proj.weight"
        ]
        for place, name in enumerate(("to_q", "to_k", "to_v")):
            rules[f"last.{name}.weight"] = fused.rows(place * width, (place + 1) * width)
        return cast_part("transformer", module, rules, precision, INTO_STREAM)

    def modulation(self, precision: Precision) -> None:
        """See `OpenModel`: it depends on the timestep alone, and is constants."""

    def reference(self, precision: Precision) -> ReferenceModel:
        """See `OpenModel`."""
        return ReferenceKlein(self, precision)

    def first_blocks(self, count: int) -> OpenModel:
        """See `OpenModel`."""
        single = self.blocks.single[: count - len(self.blocks.double)]
        return replace(self, blocks=replace(self.blocks, single=single))

    def samples_of_blocks(self) -> Sequence[OpenModel]:
        """See `OpenModel`."""
        layers = tuple(range(len(self.blocks.out_layers)))
        return [
            replace(
                self,
                spec=self.spec.of_blocks(len(double), len(single)),
                blocks=_Blocks(double, single, layers),
            )
            for double, single in pick_blocks(self.blocks.double, self.blocks.single)
        ]

    def empty_transformer(self) -> Flux2Transformer2DModel:
        """Build the transformer of these blocks, in `build_empty`."""
        config = self.files.transformer_config | {
            "num_layers": len(self.blocks.double),
            "num_single_layers": len(self.blocks.single),
        }
        return Flux2Transformer2DModel.from_config(config)

    @cached_property
    def transformer_store(self) -> TensorStore:
        """The tensors of these blocks, numbered as the model built of them numbers them."""
        names = build_empty(self.empty_transformer).state_dict()
        blocks = {
            "transformer_blocks": self.blocks.double,
            "single_transformer_blocks": self.blocks.single,
        }
        return renumber_blocks(self.files.transformer, names, blocks)

    @cached_property
    def _modulation(self) -> Mapping[str, Any]:
        return fold_modulation(
            self.files.transformer,
            timestep=self.spec.timestep,
            timestep_channels=self.files.transformer_config.get("timestep_guidance_channels", 256),
            width=self.spec.feature_dim,
        )

    def _stored_name(self, name: str) -> str | None:
        """Where a parameter of the single step is; None for rows of the last fused weight."""
        if not name.startswith("last."):
            return name
        if name.startswith("last.to_"):
            return None
        last = len(self.blocks.single) - 1
        return f"single_transformer_blocks.{last}.attn.{name.removeprefix('last.')}"


def _rules(
    module: nn.Module, store: TensorStore, stored_name: Callable[[str], str | None]
) -> dict[str, WeightRule]:
    """Values of the parameters that are on the meta device."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    names = {name: stored_name(name) for name, tensor in tensors if tensor.is_meta}
    return {name: store[stored] for name, stored in names.items() if stored is not None}


def open_klein(checkpoint: Checkpoint) -> OpenModel:
    """Open a checkpoint in diffusers' or in its makers' layout; see `open_files`.

    Raises:
        CheckpointError: A part is missing or damaged, or the parts do not belong together.
    """
    files = open_files(checkpoint)
    settings = read_settings(checkpoint, FAMILY, SETTINGS)
    layers = tuple(settings["text_encoder_out_layers"])
    check_parts(files, layers)
    files.check_tensors(max(layers) + 1)  # the reference model runs one block more
    tokenizer = open_tokenizer(files.tokenizer)
    spec = make_spec(FAMILY, settings, files, tokenizer)
    blocks = _Blocks(tuple(range(spec.double_blocks)), tuple(range(spec.single_blocks)), layers)
    precision = settings["precision"] or ("fp32" if spec.demonstrator else "bf16")
    return KleinModel(files, spec, tokenizer, blocks, precision)
