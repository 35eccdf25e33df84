"""A Step1X-Edit checkpoint of random weights, in the published layouts and sizes.

Published sizes: 19 + 38 blocks of width 3,072, a connector of width 4,096, FLUX.1's autoencoder and
a Qwen2.5-VL-7B.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.synthetic.flux2_checkpoint import MINI
from benchmarks.synthetic.qwen_files import (
    language_config,
    make_tokenizer,
    write_preprocessor,
    write_tokenizer,
)
from benchmarks.synthetic.step1x_parts import (
    empty_vae,
    language_tensors,
    vae_tensors,
    vae_tensors_diffusers,
)
from benchmarks.synthetic.step1x_tensors import (
    Step1XShape,
    transformer_tensors,
    transformer_tensors_diffusers,
)
from benchmarks.synthetic.tensor_files import RandomNumbers, write_file, write_shards

TRANSFORMER_FILES = {
    "1.0": "step1x-edit-i1258.safetensors",
    "1.1": "step1x-edit-v1p1-official.safetensors",
}
_PIPELINES = {"1.1": "Step1XEditPipeline", "1.2": "Step1XEditPipelineV1P2"}


def write_original(
    folder: Path, shape: Step1XShape, *, version: str = "1.1", seed: int | None = 0
) -> Path:
    """Write the makers' layout: two files and the language model's folder beside them.

    Returns:
        The transformer's file.
    """
    folder.mkdir(parents=True)
    numbers = None if seed is None else RandomNumbers(seed)
    file = folder / TRANSFORMER_FILES[version]
    tensors = transformer_tensors(shape.transformer(scaled=version == "1.0"))
    write_file(file, tensors, "BF16", numbers)
    write_file(folder / "vae.safetensors", vae_tensors(shape), "F32", numbers)
    language = folder / "Qwen2.5-VL-7B-Instruct"
    language.mkdir()
    tokenizer = make_tokenizer(shape)
    write_tokenizer(language, tokenizer, published=True)
    write_preprocessor(language, min_pixels=3136, max_pixels=12845056)
    config = language_config(shape, tokenizer, nested=False)
    _write_json(language / "config.json", config)
    write_shards(language, "model", language_tensors(shape), shape.text_shards, numbers)
    return file


def write_diffusers(folder: Path, shape: Step1XShape, *, version: str = "1.1") -> Path:
    """Write the layout of diffusers; with the original's seed 0 it is the same model.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True)
    mapping = version == "1.2"
    numbers = RandomNumbers(0)
    for part in ("transformer", "vae", "text_encoder", "processor"):
        (folder / part).mkdir()
    stem = "diffusion_pytorch_model"
    tensors = transformer_tensors_diffusers(shape.transformer(scaled=False, mapping=mapping))
    write_shards(folder / "transformer", stem, tensors, shape.transformer_shards, numbers)
    vae = vae_tensors_diffusers(shape)
    write_file(folder / "vae" / f"{stem}.safetensors", vae, "BF16", numbers)
    texts = language_tensors(shape)
    write_shards(folder / "text_encoder", "model", texts, shape.text_shards, numbers)
    tokenizer = make_tokenizer(shape)
    write_tokenizer(folder / "processor", tokenizer, published=False)
    write_preprocessor(folder / "processor", min_pixels=256 * 28 * 28, max_pixels=324 * 28 * 28)
    _write_json(
        folder / "text_encoder" / "config.json", language_config(shape, tokenizer, nested=True)
    )
    _write_json(folder / "transformer" / "config.json", _transformer_config(shape, mapping=mapping))
    _write_json(
        folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", **empty_vae(shape).config}
    )
    shutil.copytree(MINI / "scheduler", folder / "scheduler")
    _write_json(folder / "model_index.json", _index(version))
    return folder


def _index(version: str) -> dict[str, object]:
    return {
        "_class_name": _PIPELINES[version],
        "_diffusers_version": "0.35.0.dev0",
        "processor": ["transformers", "Qwen2_5_VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "transformer": ["diffusers", "Step1XEditTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _transformer_config(shape: Step1XShape, *, mapping: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "_class_name": "Step1XEditTransformer2DModel",
        "_diffusers_version": "0.35.0.dev0",
        "attention_head_dim": shape.head_dim,
        "axes_dims_rope": list(shape.axes),
        "connector_depth": shape.connector_depth,
        "connector_heads_num": shape.connector_heads,
        "connector_hidden_size": shape.connector,
        "connector_in_channels": shape.text_width,
        "guidance_embeds": False,
        "in_channels": shape.channels,
        "joint_attention_dim": shape.connector,
        "num_attention_heads": shape.heads,
        "num_layers": shape.double,
        "num_single_layers": shape.single,
        "out_channels": shape.channels,
        "patch_size": 1,
        "timestep_in_dim": 256,
        "vector_in_dim": shape.pooled,
    }
    return config | ({"enable_text_token_mapping": True} if mapping else {})


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=1))
