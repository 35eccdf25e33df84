"""The training losses of `mini`."""

import torch
from torch.nn import functional as F


def edit_loss(
    predicted: torch.Tensor, velocity: torch.Tensor, changed: torch.Tensor, *, boost: float = 8.0
) -> torch.Tensor:
    """Flow-matching loss over tokens (B, n, C), weighted where the edit changes the image.

    `changed` (B, n) is the share of the token that the edit changes.
    """
    weight = 1 + boost * changed
    error = (predicted.float() - velocity).square().mean(-1)
    return (weight * error).sum() / weight.sum()


def alignment_loss(vectors: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Divergence of attention over tokens (B, N_v) from what the edit changes.

    Where it changes nothing, attention is wanted to be even.
    """
    share = vectors / vectors.sum(-1, keepdim=True)
    total = cover.sum(-1, keepdim=True)
    wanted = torch.where(total > 0, cover / total.clamp_min(1e-6), 1 / cover.shape[1])
    surprise = wanted.clamp_min(1e-9).log() - share.clamp_min(1e-9).log()
    return (wanted * surprise).sum(-1).mean()


def prototype_scores(features: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Equations 5 and 6 on the token grid: F . (P_fg - P_bg), (B, N_v).

    `features` (B, N_v, D), `region` (B, N_v) in [0, 1].
    """
    unit = F.normalize(features.float(), dim=-1)
    inside = region.unsqueeze(-1)
    fg = (inside * unit).sum(1) / inside.sum(1).clamp_min(1e-6)
    bg = ((1 - inside) * unit).sum(1) / (1 - inside).sum(1).clamp_min(1e-6)
    return (unit @ (fg - bg).unsqueeze(-1)).squeeze(-1)


def mask_loss(
    scores: torch.Tensor, mask: torch.Tensor, grid_hw: tuple[int, int], sharpness: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy and Dice of the upsampled score map against the mask (B, H, W)."""
    factor = 4
    size = (grid_hw[0] * factor, grid_hw[1] * factor)
    logits = sharpness * F.interpolate(
        scores.view(-1, 1, *grid_hw), size=size, mode="bilinear", align_corners=False
    )
    wanted = F.interpolate(mask.unsqueeze(1), size=size, mode="area")
    entropy = F.binary_cross_entropy_with_logits(logits, wanted)
    found = logits.sigmoid()
    dice = 1 - (2 * (found * wanted).sum((1, 2, 3)) + 1) / (
        found.sum((1, 2, 3)) + wanted.sum((1, 2, 3)) + 1
    )
    return entropy + dice.mean()
