"""Names and shapes of Step1X-Edit's autoencoder and language model, taken from their classes."""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.synthetic.qwen_files import language_sizes
from benchmarks.synthetic.step1x_tensors import Step1XShape
from benchmarks.synthetic.tensor_files import Layout, unchanged, whole_tensors

# From the names of diffusers to those of the makers; levels of `up` count backwards.
_VAE_NAMES = (
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
)


def empty_vae(shape: Step1XShape) -> AutoencoderKL:
    """Return FLUX.1's autoencoder without weights."""
    levels = len(shape.vae_widths)
    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=shape.vae_widths,
            layers_per_block=shape.vae_layers,
            latent_channels=shape.vae_latent,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )


def vae_tensors_diffusers(shape: Step1XShape) -> dict[str, Layout]:
    """Return the autoencoder's tensors as `AutoencoderKL` names them."""
    levels = len(shape.vae_widths)
    found = {}
    for name, tensor in empty_vae(shape).state_dict().items():
        own = name
        for pattern, target in _VAE_NAMES:
            own = re.sub(pattern, target, own)
        own = re.sub(r"\.up\.(\d+)", lambda found: f".up.{levels - 1 - int(found[1])}", own)
        size = tuple(tensor.shape)
        # The makers' attention is made of convolutions.
        full = (*size, 1, 1) if ".mid.attn_1." in own and len(size) == 2 else size
        found[name] = Layout(size, unchanged({own: full})[own].rows)
    return found


def vae_tensors(shape: Step1XShape) -> dict[str, Layout]:
    """Return the same autoencoder under its makers' names."""
    return whole_tensors(vae_tensors_diffusers(shape))


def language_tensors(shape: Step1XShape) -> dict[str, Layout]:
    """Return Qwen2.5-VL under the names it is published with."""
    text, vision = language_sizes(shape)
    text |= {"bos_token_id": None, "eos_token_id": None}  # the defaults' vocabulary is larger
    with torch.device("meta"):
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        model = Qwen2_5_VLForConditionalGeneration(config)
    prefix = re.compile(r"^model\.(?=visual\.)|(?<=^model\.)language_model\.")
    shapes = {prefix.sub("", name): tuple(x.shape) for name, x in model.state_dict().items()}
    return unchanged(shapes)
