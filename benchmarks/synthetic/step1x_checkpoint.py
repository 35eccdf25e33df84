"""A Step1X-Edit checkpoint of random weights, in the published layouts and sizes.

Real weights are not needed to test an export or to measure one: the same files, names, shapes,
types and shards are. Published sizes: 19 + 38 blocks of width 3,072, a connector of width 4,096,
FLUX.1's autoencoder and a Qwen2.5-VL-7B. Files are written a piece at a time, so the 24.9 GB of
the transformer take a few MB of memory.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.synthetic.qwen_files import (
    language_config,
    make_tokenizer,
    write_preprocessor,
    write_tokenizer,
)
from benchmarks.synthetic.sparse_files import write_sparse
from benchmarks.synthetic.step1x_parts import language_tensors, vae_tensors, vae_tensors_diffusers
from benchmarks.synthetic.step1x_tensors import (
    SMALL,
    STEP1X,
    Laid,
    Rows,
    Step1XShape,
    transformer_tensors,
    transformer_tensors_diffusers,
)

__all__ = ["SMALL", "STEP1X", "Step1XShape", "tensors_nbytes", "write_diffusers", "write_original"]

TRANSFORMER_FILES = {
    "1.0": "step1x-edit-i1258.safetensors",
    "1.1": "step1x-edit-v1p1-official.safetensors",
}
_PIPELINES = {"1.1": "Step1XEditPipeline", "1.2": "Step1XEditPipelineV1P2"}
_SIZES = {"F32": 4, "BF16": 2}
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
# A prime: no two rows of a matrix begin at the same number.
_POOL = 2**22 - 3
_MODULATION = ("_mod.lin.weight", "modulation.lin.weight", "adaLN_modulation.1.weight")


def write_original(
    folder: Path, shape: Step1XShape, *, version: str = "1.1", seed: int | None = 0
) -> Path:
    """Write the makers' layout: two files and the language model's folder beside them.

    Args:
        folder: must not exist.
        shape: sizes of the model.
        version: "1.0" or "1.1".
        seed: of the weights; None for sparse files (`benchmarks.synthetic.sparse_files`).

    Returns:
        The transformer's file.
    """
    folder.mkdir(parents=True)
    pool = None if seed is None else _Pool(seed)
    file = folder / TRANSFORMER_FILES[version]
    _write_file(file, transformer_tensors(shape, scale_factor=version == "1.0"), "BF16", pool)
    _write_file(folder / "vae.safetensors", vae_tensors(shape), "F32", pool)
    language = folder / "Qwen2.5-VL-7B-Instruct"
    language.mkdir()
    tokenizer = make_tokenizer(shape)
    write_tokenizer(language, tokenizer, published=True)
    write_preprocessor(language, min_pixels=3136, max_pixels=12845056)
    config = language_config(shape, tokenizer, nested=False)
    _write_json(language / "config.json", config)
    _write_shards(language, "model", language_tensors(shape), shape.text_shards, pool)
    return file


def write_diffusers(
    folder: Path,
    shape: Step1XShape,
    *,
    version: str = "1.1",
    seed: int = 0,
    mapping: bool | None = None,
) -> Path:
    """Write the layout of diffusers; of the same seed it is the same model as the original.

    Args:
        folder: must not exist.
        shape: sizes of the model.
        version: "1.1" or "1.2".
        seed: of the weights.
        mapping: embeddings of quoted tokens go past the connector, by default in 1.2.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True)
    mapping = version == "1.2" if mapping is None else mapping
    pool = _Pool(seed)
    for part in ("transformer", "vae", "text_encoder", "processor", "scheduler"):
        (folder / part).mkdir()
    stem = "diffusion_pytorch_model"
    tensors = transformer_tensors_diffusers(shape, mapping=mapping)
    _write_shards(folder / "transformer", stem, tensors, shape.transformer_shards, pool)
    vae = vae_tensors_diffusers(shape)
    _write_file(folder / "vae" / f"{stem}.safetensors", vae, "BF16", pool)
    texts = language_tensors(shape)
    _write_shards(folder / "text_encoder", "model", texts, shape.text_shards, pool)
    tokenizer = make_tokenizer(shape)
    write_tokenizer(folder / "processor", tokenizer, published=False)
    write_preprocessor(folder / "processor", min_pixels=256 * 28 * 28, max_pixels=324 * 28 * 28)
    _write_json(
        folder / "text_encoder" / "config.json", language_config(shape, tokenizer, nested=True)
    )
    _write_json(
        folder / "transformer" / "config.json", _transformer_config(shape, version, mapping)
    )
    _write_json(folder / "vae" / "config.json", _vae_config(shape))
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(folder / "model_index.json", _index(version))
    return folder


def tensors_nbytes(tensors: Mapping[str, Laid], dtype: str) -> int:
    """Return how many bytes tensors of a type ("F32", "BF16") take in a file."""
    return sum(laid.numel for laid in tensors.values()) * _SIZES[dtype]


_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.35.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


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


def _transformer_config(shape: Step1XShape, version: str, mapping: bool) -> dict[str, object]:
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
    if version == "1.2":
        config["enable_text_token_mapping"] = mapping
    return config


def _vae_config(shape: Step1XShape) -> dict[str, object]:
    levels = len(shape.vae_widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.35.0.dev0",
        "act_fn": "silu",
        "block_out_channels": list(shape.vae_widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": shape.vae_latent,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": shape.vae_layers,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=1))


def _write_shards(
    folder: Path, stem: str, tensors: Mapping[str, Laid], count: int, pool: _Pool | None
) -> None:
    """Write bfloat16 tensors as `count` files of about the same size, and their index."""
    total = tensors_nbytes(tensors, "BF16")
    shards: list[dict[str, Laid]] = [{} for _ in range(count)]
    before = 0
    for name, laid in tensors.items():
        shards[before * count // total][name] = laid
        before += 2 * laid.numel
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        _write_file(folder / file, shard, "BF16", pool)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_file(file: Path, tensors: Mapping[str, Laid], dtype: str, pool: _Pool | None) -> None:
    if pool is None:
        write_sparse(file, {name: laid.shape for name, laid in tensors.items()}, dtype)
        return
    with file.open("wb") as out:
        out.write(_header(tensors, dtype))
        for laid in tensors.values():
            for rows in laid.rows:
                for values in pool.read(rows):
                    raw = values.to(_TYPES[dtype]).view(torch.uint8)
                    out.write(raw.numpy().tobytes())


def _header(tensors: Mapping[str, Laid], dtype: str) -> bytes:
    """Return the beginning of a safetensors file: eight bytes of length, then JSON."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, laid in tensors.items():
        begin, end = end, end + laid.numel * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": laid.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Pool:
    """Normal numbers, the same ones for the same name, read from any row on."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.normal = torch.empty(_POOL).normal_(generator=generator)

    def read(self, rows: Rows) -> Iterator[torch.Tensor]:
        """Numbers as a trained model has them: unit gain through a layer, scales near one."""
        row = math.prod(rows.shape[1:])
        first = zlib.crc32(rows.name.encode()) + rows.start * row
        left = (rows.stop - rows.start) * row
        centre, spread = _distribution(rows.name, rows.shape)
        while left:
            begin = first % _POOL
            piece = self.normal[begin : min(begin + left, _POOL)]
            yield centre + spread * piece
            first, left = first + len(piece), left - len(piece)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and deviation of a tensor's numbers."""
    if name == "connector.scale_factor":
        return -0.91, 0.0
    if len(shape) > 1:
        gain = 2.0 if name.endswith(_MODULATION) else 1.0
        return 0.0, gain / math.sqrt(math.prod(shape[1:]))
    return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.05)
