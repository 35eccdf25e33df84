"""Images to normalised packed latents, as in FLUX.2's pipeline."""

import torch
from diffusers import AutoencoderKLFlux2


def patchify(latents_nchw: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w) to (B, 4C, h, w): each 2 x 2 patch becomes channels."""
    b, c, h, w = latents_nchw.shape
    grouped = latents_nchw.reshape(b, c, h // 2, 2, w // 2, 2)
    return grouped.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def encode(vae: AutoencoderKLFlux2, images_nchw: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] to normalised tokens (B, h * w, 4C)."""
    packed = patchify(vae.encode(images_nchw).latent_dist.mode().float())
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    tokens: torch.Tensor = ((packed - mean) / std).flatten(2).transpose(1, 2)
    return tokens


def grid_ids(grid_hw: tuple[int, int], *, time: int) -> torch.Tensor:
    """Position ids (h * w, 4) of an image's tokens: (time, row, column, 0)."""
    height, width = grid_hw
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return torch.stack([torch.full_like(rows, time), rows, columns, torch.zeros_like(rows)], dim=1)


def text_ids(length: int) -> torch.Tensor:
    """Position ids (length, 4) of the prompt: (0, 0, 0, l)."""
    ids = torch.zeros(length, 4, dtype=torch.long)
    ids[:, 3] = torch.arange(length)
    return ids
