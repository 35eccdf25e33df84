"""Train the autoencoder of `mini` on generated scenes: `python -m mini.train_vae --out DIR`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mini.architecture import build_vae
from mini.latents import patchify
from mini.scenes import training_scene


def scene_batch(step: int, *, scenes: int, crops: int, crop_px: int = 48) -> torch.Tensor:
    """Random cut-outs (scenes * crops, 3, crop_px, crop_px) float32 in [-1, 1]."""
    rng = np.random.default_rng([7, step])
    pictures = []
    for i in range(scenes):
        image = training_scene((7, step, i), size_wh=(128, 128))[0].image_hwc
        for _ in range(crops):
            y, x = rng.integers(0, 128 - crop_px + 1, 2)
            pictures.append(image[y : y + crop_px, x : x + crop_px])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def set_batch_norm(vae: torch.nn.Module, *, pictures: int = 256) -> None:
    """Set the latent statistics (mean and variance per packed channel) from scenes."""
    vae.eval()
    means = []
    for step in range(pictures // 32):
        x = scene_batch(10_000_000 + step, scenes=32, crops=1, crop_px=128)
        means.append(patchify(vae.encode(x).latent_dist.mode()))
    latents = torch.cat(means)
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    start = time.monotonic()
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - start) / (60 * args.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - progress) + 1e-5
        x = scene_batch(step, scenes=args.scenes, crops=4)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            latents = posterior.mode()
            y = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        y = y.float()
        kl = (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean() / 2
        edges = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
        loss = F.l1_loss(y, x) + 0.5 * edges + 1e-6 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            psnr = 10 * np.log10(4 / F.mse_loss(y, x).item())
            print(f"{step} loss {loss.item():.4f} kl {kl.item():.2f} psnr {psnr:.1f} {time.monotonic() - start:.0f}s", flush=True)
    set_batch_norm(vae)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
