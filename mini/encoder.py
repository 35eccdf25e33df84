"""The VAE encoder of `mini`, whose weights are set rather than trained.

A few thousand steps on two cores do not train a convolutional encoder well, and the method does
not need one: the latents only have to describe the image. So the encoder computes the principal
components of 4 x 4 pixel patches: its strided convolutions gather a patch, its residual branches
are zero, and its final SiLU gets x and -x, because silu(x) - silu(-x) = x. The decoder is trained
(`mini.train_vae`).
"""

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2

from rism.evaluation.scenes.judged import training_scene

# A constant pair in every group fixes the scale that group normalisation divides by.
_ANCHOR = 8.0


def patch_components(images: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (48,) and whitened components (count, 48) of 4 x 4 RGB patches in [-1, 1].

    The 48 values are ordered (row, column, channel).
    """
    patches = []
    for i in range(images):
        image = training_scene((5, i), size_wh=(128, 128))[0].image_hwc / 127.5 - 1
        patches.append(image.reshape(32, 4, 32, 4, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 48))
    stacked = np.concatenate(patches)
    mean = stacked.mean(0)
    values, vectors = np.linalg.eigh(np.cov(stacked - mean, rowvar=False))
    order = np.argsort(values)[::-1][:count]
    return mean, (vectors[:, order] / np.sqrt(values[order])).T


@torch.no_grad()
def set_encoder(vae: AutoencoderKLFlux2, *, images: int = 200) -> None:
    """Set every weight of the encoder (three levels, 2 x latent channels at the last)."""
    encoder = vae.encoder
    groups = vae.config.norm_num_groups
    width = encoder.conv_out.in_channels
    pairs = width // (2 * groups) - 1  # value pairs per group; one pair is the anchor
    count = pairs * groups
    mean, components = patch_components(images, count)
    for parameter in encoder.parameters():
        parameter.zero_()
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.fill_(1)
        if name.endswith("conv_shortcut"):
            for i in range(module.in_channels):
                module.weight[i, i] = 1
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    # 2 x 2 pixels to 12 channels, ordered (row, column, channel).
    first = encoder.down_blocks[0].downsamplers[0].conv
    for row, column, c in np.ndindex(2, 2, 3):
        first.weight[(row * 2 + column) * 3 + c, c, row, column] = 1
    _project(encoder.down_blocks[1].downsamplers[0].conv, mean, components)
    _spread(encoder.down_blocks[2].resnets[0].conv_shortcut, count, groups)
    _collect(encoder.conv_out, count, groups, vae.config.latent_channels)
    if vae.quant_conv is not None:
        vae.quant_conv.weight.copy_(torch.eye(vae.quant_conv.in_channels)[..., None, None])
        vae.quant_conv.bias.zero_()


def _project(conv: torch.nn.Conv2d, mean: np.ndarray, components: np.ndarray) -> None:
    """Four positions of 12 channels to the components of the 4 x 4 patch."""
    count = len(components)
    grid = components.reshape(count, 2, 2, 2, 2, 3)  # (n, big row, row, big column, column, rgb)
    for big_row, big_column in np.ndindex(2, 2):
        block = grid[:, big_row, :, big_column].reshape(count, 12)
        conv.weight[:count, :12, big_row, big_column] = torch.from_numpy(block).float()
    _bias(conv)[:count] = torch.from_numpy(-(components @ mean)).float()


def _bias(conv: torch.nn.Conv2d) -> torch.Tensor:
    assert conv.bias is not None
    return conv.bias


def _slot(index: int, groups: int, width: int) -> int:
    """Channel of +component `index`; -component is the next one."""
    group, place = index % groups, index // groups
    return group * (width // groups) + 2 * place


def _spread(conv: torch.nn.Conv2d, count: int, groups: int) -> None:
    """Components to +/- pairs, with an anchor pair at the end of each group."""
    conv.weight.zero_()
    width = conv.out_channels
    for index in range(count):
        channel = _slot(index, groups, width)
        conv.weight[channel, index] = 1
        conv.weight[channel + 1, index] = -1
    for group in range(groups):
        end = (group + 1) * width // groups
        _bias(conv)[end - 2 : end] = torch.tensor([_ANCHOR, -_ANCHOR])


def _collect(conv: torch.nn.Conv2d, count: int, groups: int, latents: int) -> None:
    """Pairs back to components; the spare latents are the first components, blurred 3 x 3."""
    for latent in range(latents):
        channel = _slot(latent % count, groups, conv.in_channels)
        rows, size = (slice(1, 2), 1) if latent < count else (slice(0, 3), 9)
        conv.weight[latent, channel, rows, rows] = 4 / size
        conv.weight[latent, channel + 1, rows, rows] = -4 / size
    _bias(conv)[latents:] = -12.0  # log variance


def skip_silent_layers(vae: AutoencoderKLFlux2) -> None:
    """Remove the layers that `set_encoder` set to zero, in place: the same latents in less time."""
    for block in vae.encoder.down_blocks:
        for index, resnet in enumerate(block.resnets):
            block.resnets[index] = _Shortcut(resnet.conv_shortcut)
    vae.encoder.mid_block = torch.nn.Identity()


class _Shortcut(torch.nn.Module):
    def __init__(self, shortcut: torch.nn.Module | None) -> None:
        super().__init__()
        self.shortcut = shortcut or torch.nn.Identity()

    def forward(self, hidden: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        assert temb is None, "an autoencoder has no time embedding"
        result: torch.Tensor = self.shortcut(hidden)
        return result
