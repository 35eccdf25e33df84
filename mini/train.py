"""Train `mini` to carry out "remove <expression>": `python -m mini.train --vae DIR --out DIR`.

One step draws S scenes with E expressions each. The DiT sees a random quarter of the
noisy tokens until `--full-from` of the run, then all of them; the clean tokens are
always complete. Interrupt it at any time: the same command goes on from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2TokenizerFast

from mini.architecture import CONFIG, build_text_encoder, build_transformer
from mini.batches import COLOUR_NAMES, GRIDS, IGNORE, KIND_NAMES, Batch, BatchStream, instruction_ids
from mini.corpus import corpus
from mini.encoder import skip_silent_layers
from mini.latents import encode, grid_ids, text_ids
from mini.losses import alignment_loss, edit_loss, mask_loss, prototype_scores
from mini.probe import Probe
from mini.tokenizer import train_tokenizer

PERCEPTION_BLOCK = 2  # the block after which kinds and colours must be readable
# Kinds are the hardest to learn to see, so training asks for them more than the score does.
FORMS = {"kind": 0.35, "colour": 0.15, "size": 0.15, "place": 0.2, "relation": 0.15}
GROUNDING_BLOCK = 4  # the block after which it must be readable what the expression names


class Learner(nn.Module):
    """The parts being trained, with the heads that only training needs."""

    def __init__(self, tokenizer: Qwen2TokenizerFast) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(len(tokenizer), tokenizer.pad_token_id)
        self.transformer = build_transformer()
        width = CONFIG.heads * CONFIG.head_dim
        self.kind_head = nn.Linear(width, 1 + len(KIND_NAMES))
        self.colour_head = nn.Linear(width, 1 + len(COLOUR_NAMES))
        self.target_head = nn.Linear(width, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(2.5))

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings (B, P, 3 * hidden): three hidden states side by side."""
        model = self.text_encoder.model
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in CONFIG.text_out_layers], dim=-1)


def forward_losses(
    learner: Learner, probe: Probe, batch: Batch, clean: torch.Tensor, edited: torch.Tensor,
    *, noisy_tokens: int, generator: torch.Generator, own_region: float,
) -> dict[str, torch.Tensor]:
    """The losses of one batch; `clean` and `edited` are tokens (B, N_v, C)."""
    count, tokens, _ = clean.shape
    h, w = batch.grid_hw
    token_px = CONFIG.token_px
    cover = F.avg_pool2d(batch.mask.unsqueeze(1), token_px).flatten(1)
    kept = torch.randperm(tokens, generator=generator)[:noisy_tokens].sort().values
    sigma = torch.where(
        torch.rand(count, generator=generator) < 0.8,
        torch.ones(count),
        torch.rand(count, generator=generator),
    )
    x0 = edited[:, kept]
    noise = torch.randn(x0.shape, generator=generator)
    level = sigma.view(-1, 1, 1)
    noisy = (1 - level) * x0 + level * noise
    prompt = learner.embed(batch.input_ids, batch.attention_mask)
    length = prompt.shape[1]
    probe.start(prompt_length=length, clean_start=length + noisy_tokens)
    predicted = learner.transformer(
        hidden_states=torch.cat([noisy, clean], dim=1),
        encoder_hidden_states=prompt,
        timestep=sigma,
        img_ids=torch.cat([grid_ids((h, w), time=0)[kept], grid_ids((h, w), time=10)]),
        txt_ids=text_ids(length),
        return_dict=False,
    )[0][:, :noisy_tokens]
    losses = {"edit": edit_loss(predicted, noise - x0, cover[:, kept])}
    blocks = sorted(probe.coarse)
    losses["cam"] = sum(alignment_loss(probe.coarse[b], cover) for b in blocks) / len(blocks)
    losses["ram"] = sum(alignment_loss(probe.refined[b], cover) for b in blocks) / len(blocks)
    with torch.no_grad():
        total = sum(probe.refined[b] for b in blocks)
        low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
        own = ((total - low) / (high - low) > 0.8).float()
        true = (cover > 0.7 * cover.amax(1, keepdim=True)).float()
        use_own = (torch.rand(count, 1, generator=generator) < own_region).float()
    region = use_own * own + (1 - use_own) * true
    losses["mask"] = mask_loss(
        prototype_scores(probe.features, region), batch.mask, (h, w), learner.log_sharpness.exp()
    )
    seen = probe.perception[:, -tokens:].float()
    repeat = count // batch.source.shape[0]
    for name, head in (("kinds", learner.kind_head), ("colours", learner.colour_head)):
        labels = getattr(batch, name).repeat_interleave(repeat, 0)
        losses[name] = F.cross_entropy(head(seen).transpose(1, 2), labels, ignore_index=IGNORE)
    named = learner.target_head(probe.grounding[:, -tokens:].float())[..., 0]
    losses["target"] = F.binary_cross_entropy_with_logits(named, cover, weight=1 + 4 * cover)
    return losses


def _keep(probe: Probe, name: str, _module: nn.Module, _args: object, out: torch.Tensor) -> None:
    setattr(probe, name, out)


WEIGHTS = {"edit": 1.0, "cam": 0.2, "ram": 0.25, "mask": 0.4, "kinds": 0.4, "colours": 0.1,
           "target": 1.0}


def optimizers(learner: Learner, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices, rest = [], []
    for name, parameter in learner.named_parameters():
        inside = "blocks." in name or "model.layers." in name
        (matrices if inside and parameter.ndim == 2 else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, progress: float) -> float:
    """Warm up over 100 steps, hold, and fall to nothing over the last 40 % of the run."""
    return min(1.0, (step + 1) / 100, max(0.01, (1 - progress) / 0.4))


@torch.no_grad()
def score(learner: Learner, probe: Probe, vae: AutoencoderKLFlux2, stream: BatchStream, *, batches: int, noisy_tokens: int) -> dict[str, float]:
    """Mean IoU on token-grid x4 of CAM and RAM (> 0.5) and of the full method, unseen seeds."""
    learner.eval()
    totals = {"cam": 0.0, "ram": 0.0, "full": 0.0, "hit": 0.0}
    count = 0
    generator = torch.Generator().manual_seed(1)
    for i in range(batches):
        batch = stream.batch(50_000_000 + i)
        h, w = batch.grid_hw
        clean = encode(vae, batch.source)
        clean = clean.repeat_interleave(batch.mask.shape[0] // clean.shape[0], 0)
        with torch.autocast("cpu", torch.bfloat16):
            forward_losses(learner, probe, batch, clean, clean, noisy_tokens=noisy_tokens, generator=generator, own_region=1.0)
        wanted = F.interpolate(batch.mask.unsqueeze(1), size=(4 * h, 4 * w), mode="area")[:, 0] > 0.5

        def normal(maps: dict[int, torch.Tensor]) -> torch.Tensor:
            total = sum(maps.values())
            low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
            return (total - low) / (high - low)

        ram = normal(probe.refined)
        scores = prototype_scores(probe.features, (ram > 0.8).float())
        for name, grid in (("cam", normal(probe.coarse) - 0.5), ("ram", ram - 0.5), ("full", scores)):
            up = F.interpolate(grid.view(-1, 1, h, w), size=(4 * h, 4 * w), mode="bilinear")[:, 0] > 0
            iou = (up & wanted).sum((1, 2)) / (up | wanted).sum((1, 2)).clamp_min(1)
            totals[name] += iou.sum().item()
            if name == "full":
                totals["hit"] += (iou > 0.5).sum().item()
        count += len(wanted)
    learner.train()
    return {name: total / count for name, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the whole run")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--expressions", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--noisy", type=int, default=32, help="noisy tokens seen at first")
    parser.add_argument("--full-from", type=float, default=0.85)
    parser.add_argument("--max-steps", type=int, default=10**9)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    vae = AutoencoderKLFlux2.from_pretrained(args.vae).eval().requires_grad_(False)
    skip_silent_layers(vae)
    folder = args.out / "tokenizer"
    if not folder.exists():
        train_tokenizer(corpus(4000)).save_pretrained(folder)
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    learner = Learner(tokenizer)
    blocks = range(3, CONFIG.double_blocks + CONFIG.single_blocks)
    probe = Probe(learner.transformer, blocks=blocks, feature_block=CONFIG.feature_block)
    singles = learner.transformer.single_transformer_blocks
    for name, index in (("perception", PERCEPTION_BLOCK), ("grounding", GROUNDING_BLOCK)):
        singles[index - CONFIG.double_blocks].register_forward_hook(partial(_keep, probe, name))
    opts = optimizers(learner, args.rate)
    step, elapsed = 0, 0.0
    saved = args.out / "training.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        learner.load_state_dict(state["learner"], strict=False)
        for opt, values in zip(opts, state["optimizers"], strict=True):
            try: opt.load_state_dict(values)
            except ValueError as e: print(e)
        step, elapsed = state["step"], state["elapsed"]
    print(f"{sum(p.numel() for p in learner.parameters()):,} parameters, from step {step}", flush=True)
    stream = BatchStream(
        tokenizer, scenes=args.scenes, expressions=args.expressions,
        max_length=CONFIG.max_sequence_length, token_px=CONFIG.token_px, first_step=step,
        form_weights=FORMS,
    )
    loader = iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=6))
    last = time.monotonic()
    smooth: dict[str, float] = {}
    while elapsed < 60 * args.minutes and step < args.max_steps:
        progress = elapsed / (60 * args.minutes)
        rate = args.rate * learning_rate(step, progress)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = rate
        batch: Batch = next(loader)
        generator = torch.Generator().manual_seed(step)
        tokens = batch.grid_hw[0] * batch.grid_hw[1]
        noisy = tokens if progress >= args.full_from else args.noisy
        with torch.no_grad():
            clean = encode(vae, batch.source).repeat_interleave(args.expressions, 0)
            edited = encode(vae, batch.target)
        with torch.autocast("cpu", torch.bfloat16):
            losses = forward_losses(
                learner, probe, batch, clean, edited, noisy_tokens=noisy, generator=generator,
                own_region=0.5,
            )
            loss = sum(WEIGHTS[name] * value for name, value in losses.items())
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for opt in opts:
            opt.step()
        step += 1
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        for name, value in losses.items():
            smooth[name] = 0.95 * smooth.get(name, value.item()) + 0.05 * value.item()
        if step % 20 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            print(f"{step} {elapsed:.0f}s lr {rate:.1e} {shown}", flush=True)
        if step % 250 == 0:
            result = score(learner, probe, vae, stream, batches=4, noisy_tokens=noisy)
            print(f"{step} SCORE " + json.dumps({k: round(v, 3) for k, v in result.items()}), flush=True)
            state = {
                "learner": learner.state_dict(), "optimizers": [o.state_dict() for o in opts],
                "step": step, "elapsed": elapsed,
            }
            torch.save(state, saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
            last = time.monotonic()
    torch.save({"learner": learner.state_dict(), "optimizers": [o.state_dict() for o in opts], "step": step, "elapsed": elapsed}, saved)
    for form in ("kind", "colour", "size", "place", "relation"):
        only = BatchStream(
            tokenizer, scenes=16, expressions=1, max_length=CONFIG.max_sequence_length,
            token_px=CONFIG.token_px, form_weights={form: 1.0},
        )
        tokens = GRIDS[0][0] * GRIDS[0][1]
        print(form, score(learner, probe, vae, only, batches=3, noisy_tokens=252), flush=True)


if __name__ == "__main__":
    main()
