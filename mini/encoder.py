"""The first half of the VAE encoder of `mini`, whose weights are set rather than trained.

It gathers 4 x 4 pixels and whitens them (their principal components over scenes): the first two
levels' residual branches are zero and their strided convolutions move pixels to channels. The
second half is trained (`mini.see`), and so is the decoder (`mini.train_vae`).
"""

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch import nn
from torch.nn import functional as F

from mini.architecture import CONFIG
from mini.scenes import SceneMaker

PATCH = 48  # values of 4 x 4 RGB pixels


def patch_components(maker: SceneMaker, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (48,) and whitened components (48, 48) of 4 x 4 RGB patches in [-1, 1].

    The 48 values are ordered (row, column, channel).
    """
    patches = []
    for i in range(images):
        scene = maker.scene((5, i), split="training", size_wh=(128, 128))
        image = scene.image_hwc / 127.5 - 1
        patches.append(image.reshape(32, 4, 32, 4, 3).transpose(0, 2, 1, 3, 4).reshape(-1, PATCH))
    stacked = np.concatenate(patches)
    mean = stacked.mean(0)
    values, vectors = np.linalg.eigh(np.cov(stacked - mean, rowvar=False))
    # The finest components are noise: they are not made as large as the others.
    scale = np.sqrt(values[::-1] + 1e-3)
    return mean, (vectors[:, ::-1] / scale).T


@torch.no_grad()
def set_stem(vae: AutoencoderKLFlux2, mean: np.ndarray, components: np.ndarray) -> None:
    """Set every weight of the encoder's first two levels."""
    encoder = vae.encoder
    stem = nn.ModuleList([encoder.conv_in, *encoder.down_blocks[:2]])
    for name, parameter in stem.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for name, module in stem.named_modules():
        if name.endswith("conv_shortcut"):
            for i in range(module.in_channels):
                module.weight[i, i] = 1
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    # 2 x 2 pixels to 12 channels, ordered (row, column, channel); then 2 x 2 of these to all 48.
    first = encoder.down_blocks[0].downsamplers[0].conv
    for row, column, c in np.ndindex(2, 2, 3):
        first.weight[(row * 2 + column) * 3 + c, c, row, column] = 1
    second = encoder.down_blocks[1].downsamplers[0].conv
    grid = components.reshape(PATCH, 2, 2, 2, 2, 3)  # (n, big row, row, big column, column, rgb)
    for big_row, big_column in np.ndindex(2, 2):
        block = np.ascontiguousarray(grid[:, big_row, :, big_column].reshape(PATCH, 12))
        second.weight[:PATCH, :12, big_row, big_column] = torch.from_numpy(block).float()
    second.bias[:PATCH] = torch.from_numpy(-(components @ mean)).float()


class Eye(nn.Module):
    """The encoder as it is trained: its stem in one convolution, which is not trained."""

    kernel: torch.Tensor
    bias: torch.Tensor

    def __init__(self, vae: AutoencoderKLFlux2) -> None:
        super().__init__()
        encoder, second = vae.encoder, vae.encoder.down_blocks[1].downsamplers[0].conv
        kernel = second.weight.new_zeros(second.out_channels, 3, 4, 4)
        for row, column in np.ndindex(4, 4):
            place = (row % 2 * 2 + column % 2) * 3
            part = second.weight.detach()[:, place : place + 3, row // 2, column // 2]
            kernel[:, :, row, column] = part
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("bias", second.bias.detach().clone(), persistent=False)
        self.down = nn.ModuleList(encoder.down_blocks[2:])
        self.mid, self.norm, self.out = encoder.mid_block, encoder.conv_norm_out, encoder.conv_out
        self.quant, self.bn = vae.quant_conv, vae.bn
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, latent channels, H / 8, W / 8)."""
        image = image.contiguous(memory_format=torch.channels_last)
        hidden = F.conv2d(image, self.kernel, self.bias, stride=4)
        for block in self.down:
            hidden = block(hidden)
        hidden = self.out(F.silu(self.norm(self.mid(hidden))))
        mean: torch.Tensor = self.quant(hidden)[:, : CONFIG.latent_channels]
        return mean.float()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images to tokens (B, N_v, C), what `encode_image` gives."""
        normal = self.bn(Flux2KleinPipeline._patchify_latents(self.latents(image)))
        tokens: torch.Tensor = Flux2KleinPipeline._pack_latents(normal)
        return tokens
