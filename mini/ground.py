"""The second part of the training of `mini`: the DiT learns to carry out what is asked.

The image encoder stays as it is. The DiT starts with the maps of `mini.concepts` as its input
layers, and with the image's queries equal to the prompt's keys, so that an image token looks at
the words that mean what it shows.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from diffusers import Flux2KleinPipeline
from torch import nn
from torch.nn import functional as F

from mini.architecture import CONFIG, build_transformer
from mini.batches import Batch
from mini.concepts import SPACES, Spaces
from mini.losses import alignment_loss, edit_loss, mask_loss, prototype_scores
from mini.probe import Probe
from mini.see import Encoders
from rism.export.capture_blocks import noisy_tokens

PERCEPTION_BLOCK = 2  # its output shows kinds, colours and looks
GROUNDING_BLOCK = 4  # its output shows the tokens of what is asked
BLOCKS = range(CONFIG.double_blocks + CONFIG.single_blocks)
FIRST_STEP_SHARE = 0.8  # of the edits are at sigma = 1
NOISY_GRIDS = {2: 0.2, 4: 0.8}  # every k-th row and column has a noisy token: shares

GROUND_WEIGHTS = {
    "edit": 0.3,
    "align": 0.3,
    "mask": 1.0,
    "absent": 1.0,
    "kinds": 0.1,
    "colours": 0.05,
    "looks": 0.02,
    "target": 1.0,
}


class Learner(nn.Module):
    """Encoders and DiT of the checkpoint, and heads that are thrown away."""

    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders = encoders
        self.transformer = build_transformer()
        self.spaces = Spaces(CONFIG.width, CONFIG.embedded)
        self.spaces.load_state_dict(
            {n: v for n, v in encoders.spaces.state_dict().items() if not n.startswith("see.")},
            strict=False,
        )
        self.target = nn.Linear(CONFIG.width, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(2.5))
        encoders.requires_grad_(False)
        self.probe = Probe(blocks=BLOCKS, feature_block=CONFIG.feature_block)
        for name, index in (("perception", PERCEPTION_BLOCK), ("grounding", GROUNDING_BLOCK)):
            block = self.transformer.single_transformer_blocks[index - CONFIG.double_blocks]
            block.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, _module: nn.Module, _args: object, out: torch.Tensor) -> None:
        self.probe.hidden[name] = out

    @torch.no_grad()
    def start(self, tokens: torch.Tensor, prompt: torch.Tensor) -> None:
        """Make the input layers of the DiT from the encoders' maps; tokens and embeddings scale."""
        spaces = self.encoders.spaces
        for layer, maps, values in (
            (self.transformer.x_embedder, spaces.see, tokens),
            (self.transformer.context_embedder, spaces.say, prompt[:, -8:]),
        ):
            place = 0
            for name, (_, dim) in SPACES.items():
                rows = cast(nn.Linear, maps[name]).weight
                scale = (values.float() @ rows.T).square().mean().sqrt()
                layer.weight[place : place + dim] = rows / scale
                place += dim
        for block in self.transformer.transformer_blocks:
            block.attn.add_k_proj.weight.copy_(block.attn.to_q.weight)


@dataclass(frozen=True)
class Draw:
    """The random choices of one step: spacing of noisy tokens, and the source of the others."""

    noisy_grid: int
    own_region: float  # share of samples whose prototypes come from the model's own RAM > 0.8
    generator: torch.Generator

    @classmethod
    def of_step(cls, step: int) -> "Draw":
        """The choices of a step of the training."""
        generator = torch.Generator().manual_seed(step)
        shares = torch.tensor(list(NOISY_GRIDS.values()))
        which = int(torch.multinomial(shares, 1, generator=generator))
        return cls(list(NOISY_GRIDS)[which], 0.75, generator)


def ground_losses(
    learner: Learner, batch: Batch, clean: torch.Tensor, edited: torch.Tensor, draw: Draw
) -> dict[str, torch.Tensor]:
    """The losses of one batch; `clean` and `edited` are tokens (S, N_v, C)."""
    probe = learner.probe
    mask = batch.mask.float()
    cover = F.avg_pool2d(mask.unsqueeze(1), CONFIG.token_px).flatten(1)
    there = cover.sum(1) > 0
    with torch.no_grad():
        prompt = learner.encoders.embed(batch.input_ids, batch.attention_mask)
    losses = {"edit": _edit(learner, batch, prompt, clean, edited, cover, draw)}
    # One loss on the sums over all blocks, which are what the method reads.
    refined, coarse = (
        torch.stack(list(maps.values())).sum(0) for maps in (probe.refined, probe.coarse)
    )
    losses["align"] = alignment_loss(refined, cover) + 0.5 * alignment_loss(coarse, cover)
    scores = prototype_scores(probe.features, _region(refined.detach(), cover, draw))
    sharpness = learner.log_sharpness.exp()
    losses["mask"] = mask_loss(scores[there], mask[there], batch.grid_hw, sharpness)
    losses["absent"] = scores[~there].square().sum() / scores.numel()
    tokens = cover.shape[1]
    named = learner.target(probe.hidden["grounding"][:, -tokens:].float())[..., 0]
    losses["target"] = F.binary_cross_entropy_with_logits(named, cover, weight=1 + 4 * cover)
    # Questions about one scene see much the same after an early block: one of them is enough.
    first = slice(None, None, len(cover) // len(clean))
    shown = probe.hidden["perception"][first, -tokens:].float()
    return losses | learner.spaces.seen_losses(shown, batch.kinds, batch.colours, batch.looks)


def _edit(
    learner: Learner,
    batch: Batch,
    prompt: torch.Tensor,
    clean: torch.Tensor,
    edited: torch.Tensor,
    cover: torch.Tensor,
    draw: Draw,
) -> torch.Tensor:
    """Run the DiT, and compare its velocity with noise minus the edited image.

    Only the first question of each scene has an edited image; the others start from noise.
    """
    count, (height, width), device = len(prompt), batch.grid_hw, clean.device
    each = count // len(clean)
    k, generator = draw.noisy_grid, draw.generator
    kept = torch.from_numpy(noisy_tokens(batch.grid_hw, k)).to(device)
    sigma = torch.ones(count, device=device)
    later = torch.rand(len(clean), generator=generator) >= FIRST_STEP_SHARE
    levels = torch.where(later, torch.rand(len(clean), generator=generator), 1.0)
    sigma[::each] = levels.to(device)
    noise = torch.randn(count, len(kept), clean.shape[2], generator=generator).to(device)
    x0 = edited[:, kept]
    level = sigma[::each].view(-1, 1, 1)
    noisy = noise.clone()
    noisy[::each] = (1 - level) * x0 + level * noise[::each]
    length = prompt.shape[1]
    grid = torch.empty(1, 1, height, width)
    noisy_ids = Flux2KleinPipeline._prepare_latent_ids(grid).to(device)[:, kept]
    clean_ids = Flux2KleinPipeline._prepare_image_ids([grid]).to(device)
    with learner.probe.reading(prompt_length=length, clean_start=length + len(kept)):
        inputs = {
            "hidden_states": torch.cat([noisy, clean.repeat_interleave(each, 0)], dim=1).bfloat16(),
            "encoder_hidden_states": prompt.bfloat16(),
            "timestep": sigma.bfloat16(),
            "img_ids": torch.cat([noisy_ids, clean_ids], dim=1),
            "txt_ids": Flux2KleinPipeline._prepare_text_ids(prompt[:1]).to(device),
            "return_dict": False,
        }
        # bfloat16 throughout: autocast would go back and forth between norms and products.
        weights = {n: p.bfloat16() for n, p in learner.transformer.named_parameters()}
        with torch.autocast(device.type, enabled=False):
            predicted = torch.func.functional_call(learner.transformer, weights, (), inputs)[0]
    predicted = predicted[::each, : len(kept)]
    return edit_loss(predicted, noise[::each] - x0, cover[::each, kept])


@torch.no_grad()
def _region(refined: torch.Tensor, cover: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Region of the prototypes (B, N_v): the model's own or the object's core."""
    low, high = refined.amin(1, keepdim=True), refined.amax(1, keepdim=True)
    own = ((refined - low) / (high - low) > 0.8).float()
    true = (cover > 0.7 * cover.amax(1, keepdim=True)).float()
    use_own = torch.rand(len(cover), 1, generator=draw.generator).to(cover) < draw.own_region
    return torch.where(use_own | (cover.sum(1, keepdim=True) == 0), own, true)


@torch.no_grad()
def ground_scores(
    learner: Learner, batch: Batch, clean: torch.Tensor, *, noisy_grid: int
) -> dict[str, float]:
    """Mean IoU at 4 pixels per token of CAM, RAM and the full method, and how absence shows."""
    draw = Draw(noisy_grid, 1.0, torch.Generator().manual_seed(1))
    with torch.autocast(clean.device.type, torch.bfloat16):
        ground_losses(learner, batch, clean, clean, draw)
    probe, grid = learner.probe, batch.grid_hw
    coarse = torch.stack(list(probe.coarse.values())).sum(0)
    refined = _normal(torch.stack(list(probe.refined.values())).sum(0))
    full = prototype_scores(probe.features, (refined > 0.8).float())
    size = tuple(4 * side for side in grid)
    wanted = F.interpolate(batch.mask.float().unsqueeze(1), size=size, mode="area")[:, 0] > 0.5
    there = wanted.any(2).any(1)
    found = {}
    for name, values in {"cam": _normal(coarse) - 0.5, "ram": refined - 0.5, "full": full}.items():
        up = F.interpolate(values.view(-1, 1, *grid), size=size, mode="bilinear")[:, 0] > 0
        iou = (up & wanted).sum((1, 2)) / (up | wanted).sum((1, 2)).clamp_min(1)
        found[name] = iou[there].mean().item()
        found["hit"] = (iou[there] > 0.5).float().mean().item()
    share = coarse / coarse.sum(1, keepdim=True)
    spread = (share * share.clamp_min(1e-9).log()).sum(1)
    pairs = (spread[there, None] > spread[None, ~there]).float()
    found["auroc"] = pairs.mean().item() if pairs.numel() else 0.5
    return {name: round(value, 3) for name, value in found.items()}


def _normal(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / (high - low)
