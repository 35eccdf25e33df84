"""Train `mini`: `python -m mini.train --out DIR`, which goes on where it stopped.

First both encoders learn what there is to see and to say (`mini.see`), then the DiT learns to
carry out "remove <what is asked>" (`mini.ground`): four hours on two cores that have AMX.
`python -m mini.assets` makes the sprites.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2TokenizerFast

from mini.assets import FOLDER
from mini.batches import Batch, BatchStream, PromptStream, Stream
from mini.corpus import corpus
from mini.ground import GROUND_WEIGHTS, Draw, Learner, ground_losses, ground_scores
from mini.muon import optimizers
from mini.scenes import SceneMaker
from mini.see import (
    SAY_WEIGHTS,
    SEE_WEIGHTS,
    Encoders,
    draw_losses,
    say_losses,
    say_scores,
    see_losses,
    see_scores,
)
from mini.sheets import SheetStream
from mini.tokenizer import train_tokenizer

SAVE_SECONDS = 120
WHOLES_FROM = 0.5  # share of the DiT's time after which most batches are of whole images
UNSEEN = 50_000_000  # steps from here on are never trained


def learning_rate(step: int, progress: float) -> float:
    """Warm up over 100 steps, hold, and fall to nothing over the last half of the run."""
    return min(1.0, (step + 1) / 100, max(0.01, (1 - progress) / 0.5))


def tokenizer_in(out: Path, sprites: Path, scenes: int = 1500) -> Qwen2TokenizerFast:
    """The tokenizer of a training, made when it is first asked for."""
    folder = out / "tokenizer"
    if not folder.exists():
        train_tokenizer(corpus(sprites, scenes)).save_pretrained(folder)
    return Qwen2TokenizerFast.from_pretrained(folder)


class TrainingRun:
    """One part of a training: a module, its optimizers, its time, and the file they are kept in.

    Args:
        module: what is kept.
        trained: parts of it whose parameters are trained, where they ask for gradients.
        file: where the state is kept; read if it exists.
        minutes: length of the part.
        rates: learning rates of Muon and of AdamW.
        workers: processes that draw batches.
    """

    def __init__(
        self,
        module: nn.Module,
        file: Path,
        *,
        trained: tuple[str, ...],
        minutes: float,
        rates: tuple[float, float],
        workers: int,
    ) -> None:
        self.module, self.file, self.minutes, self.rates = module, file, minutes, rates
        self.workers = workers
        named = [
            (name, parameter)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and name.startswith(trained)
        ]
        self.parameters = [parameter for _, parameter in named]
        self.device = self.parameters[0].device
        self.optimizers = optimizers(named, *rates)
        self.step, self.elapsed = 0, 0.0
        if file.exists():
            state = torch.load(file, weights_only=True, map_location=self.device)
            module.load_state_dict(state["module"])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write everything that continuing needs, by rename."""
        state = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        part = self.file.with_suffix(".tmp")
        torch.save(state, part)
        part.replace(self.file)

    @property
    def progress(self) -> float:
        """Share of the part's time that has passed."""
        return self.elapsed / (60 * self.minutes)

    def learn(self, losses: dict[str, torch.Tensor], weights: dict[str, float]) -> None:
        """One step of both optimizers."""
        share = learning_rate(self.step, self.progress)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.zero_grad()
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1

    def go(
        self,
        stream: Stream[Any],
        losses: Callable[[Any, int], dict[str, torch.Tensor]],
        weights: dict[str, float],
        score: Callable[[], dict[str, Any]],
        until: float = 1.0,
    ) -> None:
        """Train until that share of the time is over; print losses, and scores at each save."""
        if self.progress >= until:
            return
        count = sum(parameter.numel() for parameter in self.parameters)
        print(f"{self.file.stem}: {count:,} parameters, from step {self.step}", flush=True)
        stream.first_step = self.step
        workers = torch.utils.data.DataLoader(
            stream, batch_size=None, num_workers=self.workers, prefetch_factor=4
        )
        batches: Iterator[Any] = iter(workers)
        last = saved = time.monotonic()
        smooth: dict[str, float] = {}
        while self.progress < until:
            with torch.autocast(self.device.type, torch.bfloat16):
                found = losses(next(batches).to(self.device), self.step)
            self.learn(found, weights)
            for name, value in found.items():
                smooth[name] = 0.95 * smooth.get(name, value.item()) + 0.05 * value.item()
            now = time.monotonic()
            # A pause of the process is not time of training.
            self.elapsed, last = self.elapsed + min(now - last, 20.0), now
            if self.step % 20 == 0:
                shown = " ".join(f"{name} {value:.3f}" for name, value in smooth.items())
                print(f"{self.step} {self.elapsed:.0f}s {shown}", flush=True)
            if now - saved > SAVE_SECONDS:
                self.save()
                print(f"{self.step} SCORE {json.dumps(score())}", flush=True)
                last = saved = time.monotonic()
        self.save()
        print(f"{self.step} SCORE {json.dumps(score())}", flush=True)


def start_part(
    args: argparse.Namespace,
    name: str,
    module: nn.Module,
    trained: tuple[str, ...],
    *,
    muon: float = 1.0,
    adam: float = 1.0,
) -> TrainingRun:
    """A part by its name in the arguments, with factors of the learning rates."""
    return TrainingRun(
        module,
        args.out / f"{name}.pt",
        trained=trained,
        minutes=getattr(args, name),
        rates=(muon * args.muon, adam * args.adam),
        workers=args.workers,
    )


def train_encoders(args: argparse.Namespace, tokenizer: Qwen2TokenizerFast) -> Encoders:
    """The first part: the text encoder, then the image encoder."""
    encoders = Encoders(tokenizer, SceneMaker(args.sprites)).to(args.device)
    encoders.text_encoder.set_attn_implementation("eager")
    encoder = encoders.vae.encoder
    for module in (encoder.conv_in, *encoder.down_blocks[:2]):
        module.requires_grad_(False)
    words = ("text_encoder.", "spaces.say", "spaces.anchor", "spaces.other")
    run = start_part(args, "say", encoders, words)
    prompts = PromptStream(tokenizer, args.sprites)

    def score_words() -> dict[str, Any]:
        return say_scores(encoders, prompts.batch(UNSEEN).to(args.device))

    run.go(prompts, lambda batch, _: say_losses(encoders, batch), SAY_WEIGHTS, score_words)
    things = ("vae.encoder.", "vae.quant_conv.", "spaces.see", "pixels.")
    run = start_part(args, "see", encoders, things)
    eye = encoders.eye()
    settings = {"scenes": 16, "questions": 1}
    stream = BatchStream(tokenizer, args.sprites, wholes=0.2, crowded=0.6, **settings)
    held = BatchStream(tokenizer, args.sprites, wholes=0.2, split="held-out", **settings)

    def score_things() -> dict[str, Any]:
        tests = {"training": stream, "held-out": held}
        batches = {name: each.batch(UNSEEN).to(args.device) for name, each in tests.items()}
        return {name: see_scores(encoders, eye, each) for name, each in batches.items()}

    sheets = SheetStream(stream)
    run.go(sheets, lambda batch, _: see_losses(encoders, eye, batch), SEE_WEIGHTS, score_things)
    return encoders


def train_decoder(
    args: argparse.Namespace, tokenizer: Qwen2TokenizerFast, encoders: Encoders
) -> None:
    """What the method never runs, and an editor ends with."""
    run = start_part(args, "draw", encoders, ("vae.decoder.", "vae.post_quant_conv."))
    eye = encoders.eye().eval()
    stream = BatchStream(tokenizer, args.sprites, scenes=16, questions=1, wholes=0)

    @torch.no_grad()
    def score() -> dict[str, Any]:
        batch = stream.batch(UNSEEN).to(args.device)
        drawn = encoders.vae.decode(eye.latents(batch.source)).sample
        return {"PSNR": (10 * torch.log10(4 / (drawn - batch.source).square().mean())).item()}

    run.go(stream, lambda batch, _: draw_losses(encoders, eye, batch), {"drawn": 1.0}, score)


def train_dit(args: argparse.Namespace, tokenizer: Qwen2TokenizerFast, encoders: Encoders) -> None:
    """The second part: on parts of images, and at last on whole images."""
    encoders.eval()
    learner = Learner(encoders).to(args.device)
    eye = encoders.eye().eval()
    stream = BatchStream(tokenizer, args.sprites, scenes=12, questions=4, wholes=0.15)
    held = BatchStream(tokenizer, args.sprites, scenes=12, questions=4, wholes=0, split="held-out")
    trained = ("transformer.", "spaces.see", "target.", "log_sharpness")
    file = args.out / "ground.pt"

    @torch.no_grad()
    def see(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(args.device.type, torch.bfloat16):
            tokens: torch.Tensor = eye(image)
        return tokens.float()

    if not file.exists():
        batch = stream.batch(UNSEEN).to(args.device)
        learner.start(see(batch.source), encoders.embed(batch.input_ids, batch.attention_mask))
    run = start_part(args, "ground", learner, trained, muon=0.75, adam=2)

    def losses(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        clean, edited = see(batch.source), see(batch.target)
        return ground_losses(learner, batch, clean, edited, Draw.of_step(step))

    def score() -> dict[str, Any]:
        found = {}
        for name, tests, k in (("training", stream, 4), ("held-out", held, 4)):
            batch = tests.batch(UNSEEN + 1).to(args.device)
            found[name] = ground_scores(learner, batch, see(batch.source), noisy_grid=k)
        return found

    run.go(stream, losses, GROUND_WEIGHTS, score, until=WHOLES_FROM)
    stream.wholes = 0.6
    run.go(stream, losses, GROUND_WEIGHTS, score)


def main() -> None:
    """Train, or go on with a training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sprites", type=Path, default=FOLDER)
    parser.add_argument("--say", type=float, default=5.0, help="minutes of the text encoder")
    parser.add_argument("--see", type=float, default=60.0, help="minutes of the image encoder")
    parser.add_argument("--ground", type=float, default=160.0, help="minutes of the DiT")
    parser.add_argument("--draw", type=float, default=5.0, help="minutes of the decoder")
    parser.add_argument("--device", type=torch.device, default="cpu", help="or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--muon", type=float, default=8e-3, help="its learning rate")
    parser.add_argument("--adam", type=float, default=1e-3, help="that of AdamW")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = tokenizer_in(args.out, args.sprites)
    encoders = train_encoders(args, tokenizer)
    train_decoder(args, tokenizer, encoders)
    train_dit(args, tokenizer, encoders)


if __name__ == "__main__":
    main()
