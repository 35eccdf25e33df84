"""Random checkpoints of Step1X-Edit are what the published ones are, but for their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from benchmarks.synthetic.qwen_files import SPECIAL_TOKENS
from benchmarks.synthetic.step1x_checkpoint import write_diffusers, write_original
from benchmarks.synthetic.step1x_parts import language_tensors, vae_tensors
from benchmarks.synthetic.step1x_tensors import (
    SMALL,
    STEP1X,
    transformer_tensors,
    transformer_tensors_diffusers,
)
from benchmarks.synthetic.tensor_files import tensors_nbytes


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("step1x") / "original", SMALL).parent


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusers(tmp_path_factory.mktemp("step1x") / "diffusers", SMALL, version="1.2")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files that lie in a folder, or of one file."""
    files = folder.glob("*.safetensors") if folder.is_dir() else [folder]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_published_sizes() -> None:
    first = transformer_tensors(STEP1X.transformer(scaled=True))
    assert len(first) == 817
    assert tensors_nbytes(first, "BF16") == 24_855_600_770
    assert first["double_blocks.18.img_attn.qkv.weight"].shape == (9216, 3072)
    assert first["single_blocks.37.linear1.weight"].shape == (21504, 3072)
    assert first["single_blocks.37.linear2.weight"].shape == (3072, 15360)
    assert first["connector.S.input_embedder.weight"].shape == (4096, 3584)
    divided = transformer_tensors_diffusers(STEP1X.transformer(scaled=False))
    assert tensors_nbytes(divided, "BF16") == tensors_nbytes(first, "BF16") - 2
    assert divided["single_transformer_blocks.37.proj_mlp.weight"].shape == (12288, 3072)
    assert tensors_nbytes(vae_tensors(STEP1X), "F32") == 335_278_732
    texts = language_tensors(STEP1X)
    assert (len(texts), tensors_nbytes(texts, "BF16")) == (729, 16_584_333_312)
    assert STEP1X.axes == (16, 56, 56)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_makers_file(tmp_path: Path, version: str) -> None:
    file = write_original(tmp_path / "model", SMALL, version=version)
    names = {"1.0": "step1x-edit-i1258", "1.1": "step1x-edit-v1p1-official"}
    assert file == tmp_path / "model" / f"{names[version]}.safetensors"
    found = read(file)
    assert ("connector.scale_factor" in found) == (version == "1.0")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in found.values())
    matrix = found["double_blocks.1.img_mlp.2.weight"].float()
    assert matrix.std() * matrix.shape[1] ** 0.5 == pytest.approx(1, rel=0.05)
    assert found["single_blocks.0.norm.key_norm.scale"].float().mean() == pytest.approx(1, abs=0.1)
    vae = read(tmp_path / "model" / "vae.safetensors")
    assert vae["encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    assert {tensor.dtype for tensor in vae.values()} == {torch.float32}


def test_numbers_follow_from_the_seed(tmp_path: Path, original: Path) -> None:
    same = write_original(tmp_path / "same", SMALL)
    other = write_original(tmp_path / "other", SMALL, seed=1)
    assert same.read_bytes() == (original / same.name).read_bytes() != other.read_bytes()


def test_both_layouts_hold_the_same_numbers(original: Path, converted: Path) -> None:
    first = read(original / "step1x-edit-v1p1-official.safetensors")
    second = read(converted / "transformer")
    block = "single_transformer_blocks.2"
    parts = [second[f"{block}.attn.to_{part}.weight"] for part in "qkv"]
    parts.append(second[f"{block}.proj_mlp.weight"])
    assert torch.equal(torch.cat(parts), first["single_blocks.2.linear1.weight"])
    shift, scale = first["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(torch.cat([scale, shift]), second["norm_out.linear.weight"])
    assert second["text_token_mapping.weight"].shape == (SMALL.connector, SMALL.text_width)
    config = json.loads((converted / "transformer" / "config.json").read_text())
    assert config["enable_text_token_mapping"] is True and config["connector_heads_num"] == 2
    file = "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads((converted / "transformer" / file).read_text())
    assert set(index["weight_map"]) == set(second)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in second.values())


def test_libraries_load_the_other_parts(original: Path, converted: Path) -> None:
    _, info = AutoencoderKL.from_pretrained(converted / "vae", output_loading_info=True)
    assert not any(info.values())
    for folder in (original / "Qwen2.5-VL-7B-Instruct", converted / "text_encoder"):
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(info.values())
        assert model.config.text_config.rope_parameters["mrope_section"] == list(SMALL.mrope)
        assert model.config.vision_config.fullatt_block_indexes == list(SMALL.vision_full)
        names = {name for name in language_tensors(SMALL) if name.startswith("visual.")}
        assert len(names) == len(model.model.visual.state_dict())


@pytest.mark.parametrize("place", ["original", "converted"])
def test_the_tokenizer(place: str, request: pytest.FixtureRequest) -> None:
    parts = {"original": "Qwen2.5-VL-7B-Instruct", "converted": "processor"}
    folder = request.getfixturevalue(place) / parts[place]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|im_start|>user\nIt's  “a”\n\n 42 zwölf 漢字<|vision_start|><|image_pad|>!"
    assert tokenizer(text).input_ids == core.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    for token in SPECIAL_TOKENS:
        assert tokenizer(token).input_ids == [tokenizer.convert_tokens_to_ids(token)]
    assert len(tokenizer) <= SMALL.vocabulary
