"""The makers' own layout gives the same model as diffusers' folders."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file, save_file

from rism.export import CheckpointError, UnsupportedModelError, plan_export
from rism.export.checkpoint.safetensors_store import TensorStore, read_headers
from rism.export.families.find import find_checkpoint
from rism.export.families.flux2.klein import KleinModel, open_klein
from rism.export.families.flux2.single_file import NAMES, open_autoencoder, open_transformer
from rism.export.precision import PRECISIONS


def makers_transformer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names by the exporter's table, which is compared with diffusers' conversion below."""
    found = {
        name: torch.cat([tensors[part] for part in parts])
        for name, parts in NAMES.makers_names(tensors).items()
    }
    final = "final_layer.adaLN_modulation.1.weight"
    return found | {final: torch.cat(found[final].chunk(2)[::-1])}


def makers_autoencoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if ".attentions.0.to_" in name and name.endswith("weight"):
            tensor = tensor[..., None, None]
        for pattern, replacement in (
            (r"^(encoder)\.down_blocks\.(\d)\.resnets\.(\d)\.", r"\1.down.\2.block.\3."),
            (r"^(encoder)\.down_blocks\.(\d)\.downsamplers\.0\.", r"\1.down.\2.downsample."),
            (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
            (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
            (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
            (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
            (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
            (r"\.conv_norm_out\.", ".norm_out."),
            (r"\.conv_shortcut\.", ".nin_shortcut."),
            (r"^quant_conv\.", "encoder.quant_conv."),
            (r"^post_quant_conv\.", "decoder.post_quant_conv."),
        ):
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.contiguous()
    return found


@pytest.fixture
def single(checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint with its transformer as one file, under the makers' names."""
    folder = tmp_path / "single"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("transformer"))
    (folder / "model_index.json").unlink()
    tensors = load_file(next((checkpoint / "transformer").glob("*.safetensors")))
    save_file(makers_transformer(tensors), folder / "flux-2-klein-tiny.safetensors")
    return folder


def read(store: TensorStore) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in store.items()}


def opened(path: Path) -> KleinModel:
    model = open_klein(find_checkpoint(str(path)))
    assert isinstance(model, KleinModel)
    return model


def test_it_is_the_model_of_the_folders(single: Path, checkpoint: Path) -> None:
    ours, folders = opened(single), opened(checkpoint)
    file = single / "flux-2-klein-tiny.safetensors"
    for path in (ours, opened(file)):
        for name, tensor in folders.files.transformer.items():
            if name != "norm_out.linear.weight":  # not in any graph
                assert torch.equal(path.files.transformer[name].read(), tensor.read()), name
    config, wanted = (json.loads(json.dumps(m.files.transformer_config)) for m in (ours, folders))
    for key in wanted.keys() - {"out_channels", "patch_size"}:
        assert config[key] == wanted[key], key


def test_its_graphs_have_the_same_weights(single: Path, checkpoint: Path) -> None:
    file, fp32 = single / "flux-2-klein-tiny.safetensors", PRECISIONS["fp32"]
    ours, folders = opened(file), opened(checkpoint)
    assert ours.spec == replace(folders.spec, name="flux-2-klein-tiny")
    for part in ("transformer", "text_encoder", "vae_encoder"):
        wanted = getattr(folders, part)(fp32).fill().state_dict()
        found = getattr(ours, part)(fp32).fill().state_dict()
        torch.testing.assert_close(dict(found), dict(wanted), rtol=0, atol=0)


def test_it_is_what_diffusers_own_conversion_gives(single: Path) -> None:
    from diffusers.loaders.single_file_utils import (
        convert_flux2_transformer_checkpoint_to_diffusers,
    )

    file = single / "flux-2-klein-tiny.safetensors"
    theirs = convert_flux2_transformer_checkpoint_to_diffusers(load_file(file))
    store, _ = open_transformer(file, read_headers(file))
    final = theirs["norm_out.linear.weight"]
    theirs["norm_out.linear.weight"] = torch.cat(final.chunk(2)[::-1])  # the makers' order
    torch.testing.assert_close(read(store), theirs, rtol=0, atol=0)


def test_the_makers_autoencoder(single: Path) -> None:
    before = read(opened(single).files.vae)
    weights = load_file(next((single / "vae").glob("*.safetensors")))
    save_file(makers_autoencoder(weights), single / "ae.safetensors")
    shutil.rmtree(single / "vae")
    after = read(open_autoencoder(single / "ae.safetensors"))
    encoder = {n: t for n, t in before.items() if n.startswith(("encoder.", "quant_conv.", "bn."))}
    torch.testing.assert_close(after, encoder, rtol=0, atol=0)
    # A lone file is read with the published sizes; those of the small one differ.
    with pytest.raises(CheckpointError, match="16 latent channels, the VAE packs 128"):
        opened(single)


def test_the_published_autoencoder(single: Path) -> None:
    """Its names and shapes are those of the class's own sizes."""
    with init_empty_weights():
        vae = AutoencoderKLFlux2()
    shapes = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in vae.state_dict().items()}
    kept = {k: v for k, v in shapes.items() if not k.startswith("decoder.")}
    save_file(makers_autoencoder(kept), single / "ae.safetensors")
    store = open_autoencoder(single / "ae.safetensors")
    wanted = {k: v.shape for k, v in kept.items() if not k.startswith("post_quant_conv")}
    store.expect(wanted)


def test_what_is_no_transformer_file(single: Path, tmp_path: Path) -> None:
    file = single / "flux-2-klein-tiny.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"double_blocks.0.img_attn.qkv.weight_scale": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"FP8 with scales: double_blocks\.0\.img_attn.*BF16"):
        plan_export(str(file), tmp_path / "b")
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(UnsupportedModelError, match=r"one of FLUX\.2-klein, Step1X-Edit"):
        plan_export(str(file), tmp_path / "b")
    kv = file.rename(file.with_name("flux-2-klein-9b-kv.safetensors"))
    shutil.rmtree(single / "text_encoder")  # known by its name before any other file is read
    with pytest.raises(UnsupportedModelError, match="attend only to themselves"):
        plan_export(str(kv), tmp_path / "b")


def test_parts_that_are_not_beside_the_file(single: Path, tmp_path: Path) -> None:
    shutil.rmtree(single / "text_encoder")
    with pytest.raises(CheckpointError, match="text_encoder is missing, expected it beside"):
        plan_export(str(single / "flux-2-klein-tiny.safetensors"), tmp_path / "b")
