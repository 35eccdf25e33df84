"""Make the autoencoder of `mini`: `python -m mini.train_vae --out DIR [--minutes 6]`.

Sets the encoder (`mini.encoder`), measures the latent statistics and trains the decoder on crops
of generated scenes. The same command continues the training of the decoder in DIR.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch.nn import functional as F

from mini.architecture import build_vae
from mini.batches import to_tensor
from mini.encoder import set_encoder, skip_silent_layers
from rism.evaluation.scenes.judged import training_scene

CROP_PX = 48
RATE = 3e-3


def scene_batch(step: int, *, scenes: int, crops: int, crop_px: int = CROP_PX) -> torch.Tensor:
    """Random crops (scenes * crops, 3, crop_px, crop_px) float32 in [-1, 1]."""
    rng = np.random.default_rng([7, step])
    images = []
    for i in range(scenes):
        image = training_scene((7, step, i), size_wh=(128, 128))[0].image_hwc
        for _ in range(crops):
            y, x = rng.integers(0, 128 - crop_px + 1, 2)
            images.append(image[y : y + crop_px, x : x + crop_px])
    return to_tensor(images)


@torch.no_grad()
def set_batch_norm(vae: AutoencoderKLFlux2, *, images: int = 256) -> None:
    """Set the latent statistics (mean and variance per packed channel) from scenes."""
    batches = []
    for step in range(images // 32):
        x = scene_batch(10_000_000 + step, scenes=32, crops=1, crop_px=128)
        mode = vae.encode(x).latent_dist.mode()
        batches.append(Flux2KleinPipeline._patchify_latents(mode))
    latents = torch.cat(batches)
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)))
    vae.bn.running_var.copy_(latents.var((0, 2, 3)))


def train_decoder(vae: AutoencoderKLFlux2, *, minutes: float, seed: int) -> float:
    """Train the decoder to invert the encoder; returns the last smoothed PSNR, dB."""
    skip_silent_layers(vae)  # a faster encoder, which is not saved
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    start, step, smooth = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (1 - progress) + 1e-5
        x = scene_batch(seed + step, scenes=4, crops=3)
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mode()
            # Edited latents are not exact, so the decoder is trained on noisy ones.
            latents = latents + 0.05 * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(latents).sample.float()
        loss = F.l1_loss(y, x) + F.mse_loss(y, x)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        psnr = 10 * np.log10(4 / F.mse_loss(y, x).item())
        smooth = psnr if step == 0 else 0.98 * smooth + 0.02 * psnr
        step += 1
        if step % 50 == 0:
            print(f"{step} psnr {smooth:.1f} dB, {60 * progress * minutes:.0f} s", flush=True)
    return smooth


def main() -> None:
    """Set the encoder, train the decoder, save both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    args = parser.parse_args()
    torch.manual_seed(0)
    if (args.out / "config.json").exists():
        vae = AutoencoderKLFlux2.from_pretrained(args.out)
    else:
        vae = build_vae().eval()
        set_encoder(vae)
        set_batch_norm(vae)
        vae.save_pretrained(args.out)
    if args.minutes > 0:
        trained = AutoencoderKLFlux2.from_pretrained(args.out).train()
        psnr = train_decoder(trained, minutes=args.minutes, seed=int(time.time()))
        vae.decoder.load_state_dict(trained.decoder.state_dict())
        vae.post_quant_conv.load_state_dict(trained.post_quant_conv.state_dict())
        vae.save_pretrained(args.out)
        print(f"{args.out}: decoder at {psnr:.1f} dB")


if __name__ == "__main__":
    main()
