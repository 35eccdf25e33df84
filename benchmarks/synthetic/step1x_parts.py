"""Names and shapes of what stands beside Step1X-Edit's transformer: autoencoder, language model."""

from __future__ import annotations

import re

from benchmarks.synthetic.step1x_tensors import Laid, Shapes, Step1XShape, as_they_are, linear, norm

__all__ = ["language_tensors", "vae_tensors", "vae_tensors_diffusers"]


def _conv(name: str, inputs: int, outputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def vae_tensors(shape: Step1XShape) -> dict[str, Laid]:
    """Return FLUX.1's autoencoder under its makers' names."""
    widths, layers = shape.vae_widths, shape.vae_layers
    found = _conv("encoder.conv_in", 3, widths[0])
    before = widths[0]
    for level, width in enumerate(widths):
        for number in range(layers):
            found |= _resnet(f"encoder.down.{level}.block.{number}", before, width)
            before = width
        if level < len(widths) - 1:
            found |= _conv(f"encoder.down.{level}.downsample.conv", width, width)
    found |= _middle("encoder", before)
    found |= norm("encoder.norm_out", before)
    found |= _conv("encoder.conv_out", before, 2 * shape.vae_latent)
    found |= _conv("decoder.conv_in", shape.vae_latent, before)
    found |= _middle("decoder", before)
    for level, width in reversed(list(enumerate(widths))):
        for number in range(layers + 1):
            found |= _resnet(f"decoder.up.{level}.block.{number}", before, width)
            before = width
        if level:
            found |= _conv(f"decoder.up.{level}.upsample.conv", width, width)
    found |= norm("decoder.norm_out", before)
    return as_they_are(found | _conv("decoder.conv_out", before, 3))


def _resnet(prefix: str, inputs: int, outputs: int) -> Shapes:
    found = norm(f"{prefix}.norm1", inputs) | _conv(f"{prefix}.conv1", inputs, outputs)
    found |= norm(f"{prefix}.norm2", outputs) | _conv(f"{prefix}.conv2", outputs, outputs)
    if inputs != outputs:
        found |= _conv(f"{prefix}.nin_shortcut", inputs, outputs, 1)
    return found


def _middle(half: str, width: int) -> Shapes:
    found = _resnet(f"{half}.mid.block_1", width, width)
    found |= norm(f"{half}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        found |= _conv(f"{half}.mid.attn_1.{part}", width, width, 1)
    return found | _resnet(f"{half}.mid.block_2", width, width)


def vae_tensors_diffusers(shape: Step1XShape) -> dict[str, Laid]:
    """Return the same autoencoder as `AutoencoderKL` names it."""
    last = len(shape.vae_widths) - 1
    rules = (
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        *(
            rule
            for level in range(last + 1)
            for rule in (
                (rf"\.up\.{level}\.block\.", f".up_blocks.{last - level}.resnets."),
                (rf"\.up\.{level}\.upsample\.", f".up_blocks.{last - level}.upsamplers.0."),
            )
        ),
    )
    found = {}
    for name, laid in vae_tensors(shape).items():
        renamed = name
        for pattern, target in rules:
            renamed = re.sub(pattern, target, renamed)
        matrix = ".mid.attn_1." in name and len(laid.shape) == 4
        found[renamed] = Laid(laid.shape[:2] if matrix else laid.shape, laid.rows)
    return found


def language_tensors(shape: Step1XShape) -> dict[str, Laid]:
    """Return Qwen2.5-VL under the names it is published with."""
    width, seen = shape.text_width, shape.vision_width
    keys = width * shape.text_kv_heads // shape.text_heads
    found: Shapes = {"visual.patch_embed.proj.weight": (seen, 3, 2, 14, 14)}
    for number in range(shape.vision_depth):
        block = f"visual.blocks.{number}"
        found |= {f"{block}.norm1.weight": (seen,), f"{block}.norm2.weight": (seen,)}
        found |= linear(f"{block}.attn.qkv", seen, 3 * seen)
        found |= linear(f"{block}.attn.proj", seen, seen)
        found |= linear(f"{block}.mlp.gate_proj", seen, shape.vision_intermediate)
        found |= linear(f"{block}.mlp.up_proj", seen, shape.vision_intermediate)
        found |= linear(f"{block}.mlp.down_proj", shape.vision_intermediate, seen)
    found["visual.merger.ln_q.weight"] = (seen,)
    found |= linear("visual.merger.mlp.0", 4 * seen, 4 * seen)
    found |= linear("visual.merger.mlp.2", 4 * seen, width)
    found["model.embed_tokens.weight"] = (shape.vocabulary, width)
    for number in range(shape.text_blocks):
        block = f"model.layers.{number}"
        found |= linear(f"{block}.self_attn.q_proj", width, width)
        found |= linear(f"{block}.self_attn.k_proj", width, keys)
        found |= linear(f"{block}.self_attn.v_proj", width, keys)
        found[f"{block}.self_attn.o_proj.weight"] = (width, width)
        found[f"{block}.mlp.gate_proj.weight"] = (shape.text_intermediate, width)
        found[f"{block}.mlp.up_proj.weight"] = (shape.text_intermediate, width)
        found[f"{block}.mlp.down_proj.weight"] = (width, shape.text_intermediate)
        found[f"{block}.input_layernorm.weight"] = (width,)
        found[f"{block}.post_attention_layernorm.weight"] = (width,)
    found["model.norm.weight"] = (width,)
    found["lm_head.weight"] = (shape.vocabulary, width)
    return as_they_are(found)
