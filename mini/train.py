"""Train `mini` to carry out "remove <expression>": `python -m mini.train --vae DIR --out DIR`.

One step draws S scenes with E expressions each. The DiT gets a few random noisy tokens until
`--full-from` of the run, then all of them, and always all clean tokens. After an interruption the
same command continues from the last checkpoint.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2TokenizerFast

from mini.architecture import CONFIG
from mini.batches import Batch, BatchStream
from mini.corpus import corpus
from mini.encoder import skip_silent_layers
from mini.learner import WEIGHTS, Learner, StepOptions, step_losses
from mini.losses import prototype_scores
from mini.probe import Probe
from mini.tokenizer import train_tokenizer
from rism.evaluation.scenes.expressions import FORMS
from rism.export.families.flux2.reference import encode_image

# Kinds are the hardest to learn to see, so training asks for them more than the score does.
FORM_WEIGHTS = {"kind": 0.35, "colour": 0.15, "size": 0.15, "place": 0.2, "relation": 0.15}
SAVE_EVERY = 250
UNSEEN = 50_000_000  # steps from here on are never trained


def optimizers(learner: Learner, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
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


class TrainingRun:
    """A training run: its modules, optimizers, elapsed time, and the file they are saved in."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.vae = AutoencoderKLFlux2.from_pretrained(args.vae).eval().requires_grad_(False)
        skip_silent_layers(self.vae)
        folder = args.out / "tokenizer"
        if not folder.exists():
            train_tokenizer(corpus(4000)).save_pretrained(folder)
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
        self.learner = Learner(self.tokenizer)
        self.optimizers = optimizers(self.learner, args.rate)
        self.step, self.elapsed = 0, 0.0
        self.file: Path = args.out / "training.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.learner.load_state_dict(state["learner"])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write everything that continuing needs, by rename."""
        state = {
            "learner": self.learner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        part = self.file.with_suffix(".tmp")
        torch.save(state, part)
        part.replace(self.file)

    @property
    def progress(self) -> float:
        """Share of the run's time that has passed."""
        return self.elapsed / (60 * float(self.args.minutes))

    def stream(self, **changes: object) -> BatchStream:
        """Batches of this run, or with other settings."""
        settings = {
            "scenes": self.args.scenes,
            "expressions": self.args.expressions,
            "first_step": self.step,
            "form_weights": FORM_WEIGHTS,
        } | changes
        return BatchStream(
            self.tokenizer,
            max_length=CONFIG.max_sequence_length,
            token_px=CONFIG.token_px,
            **settings,
        )

    def learn(self, batch: Batch) -> dict[str, float]:
        """One step of both optimizers; the losses."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.args.rate * learning_rate(self.step, self.progress)
        tokens = batch.grid_hw[0] * batch.grid_hw[1]
        options = StepOptions(
            noisy_tokens=tokens if self.progress >= self.args.full_from else self.args.noisy,
            own_region=0.75,
            generator=torch.Generator().manual_seed(self.step),
        )
        with torch.no_grad():
            clean = encode_image(self.vae, batch.source).repeat_interleave(self.args.expressions, 0)
            edited = encode_image(self.vae, batch.target)
        with torch.autocast("cpu", torch.bfloat16):
            losses = step_losses(self.learner, batch, clean, edited, options)
            loss = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}


def _maps(probe: Probe) -> dict[str, torch.Tensor]:
    """Maps (B, N_v) that are positive inside the masks of CAM, RAM (at 0.5) and the full method."""

    def normal(maps: dict[int, torch.Tensor]) -> torch.Tensor:
        total = torch.stack(list(maps.values())).sum(0)
        low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
        return (total - low) / (high - low)

    refined = normal(probe.refined)
    full = prototype_scores(probe.features, (refined > 0.8).float())
    return {"cam": normal(probe.coarse) - 0.5, "ram": refined - 0.5, "full": full}


@torch.no_grad()
def score(
    run: TrainingRun, stream: BatchStream, *, batches: int, noisy_tokens: int
) -> dict[str, float]:
    """Mean IoU at four pixels per token on seeds outside the training, and the hit rate."""
    run.learner.eval()
    ious: dict[str, list[torch.Tensor]] = {"cam": [], "ram": [], "full": []}
    for index in range(batches):
        batch = stream.batch(UNSEEN + index)
        grid = batch.grid_hw
        size = tuple(4 * side for side in grid)
        clean = encode_image(run.vae, batch.source)
        clean = clean.repeat_interleave(len(batch.mask) // len(clean), 0)
        options = StepOptions(noisy_tokens, 1.0, torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            step_losses(run.learner, batch, clean, clean, options)
        wanted = F.interpolate(batch.mask.unsqueeze(1), size=size, mode="area")[:, 0] > 0.5
        for name, values in _maps(run.learner.probe).items():
            up = F.interpolate(values.view(-1, 1, *grid), size=size, mode="bilinear")[:, 0] > 0
            union = (up | wanted).sum((1, 2)).clamp_min(1)
            ious[name].append((up & wanted).sum((1, 2)) / union)
    run.learner.train()
    found = {name: torch.cat(values) for name, values in ious.items()}
    means = {name: round(values.mean().item(), 3) for name, values in found.items()}
    return means | {"hit": round((found["full"] > 0.5).float().mean().item(), 3)}


def _train(run: TrainingRun) -> None:
    loader: Iterator[Batch] = iter(
        torch.utils.data.DataLoader(run.stream(), batch_size=None, num_workers=1, prefetch_factor=6)
    )
    last = time.monotonic()
    smooth: dict[str, float] = {}
    while run.progress < 1 and run.step < run.args.max_steps:
        for name, value in run.learn(next(loader)).items():
            smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
        now = time.monotonic()
        run.elapsed, last = run.elapsed + now - last, now
        if run.step % 20 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            print(f"{run.step} {run.elapsed:.0f}s {shown}", flush=True)
        if run.step % SAVE_EVERY == 0:
            result = score(run, run.stream(), batches=4, noisy_tokens=run.args.noisy)
            print(f"{run.step} SCORE {json.dumps(result)}", flush=True)
            run.save()
            last = time.monotonic()
    run.save()


def main() -> None:
    """Train, or continue a training, and print the score by form of expression."""
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
    run = TrainingRun(args)
    count = sum(parameter.numel() for parameter in run.learner.parameters())
    print(f"{count:,} parameters, from step {run.step}", flush=True)
    _train(run)
    for form in FORMS:
        only = run.stream(scenes=16, expressions=1, form_weights={form: 1.0})
        print(form, score(run, only, batches=3, noisy_tokens=252), flush=True)


if __name__ == "__main__":
    main()
