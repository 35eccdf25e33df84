"""The trained modules of `mini`: text encoder and DiT, with heads that only training needs."""

from dataclasses import dataclass
from functools import partial

import torch
from diffusers import Flux2KleinPipeline
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2TokenizerFast

from mini.architecture import CONFIG, build_text_encoder, build_transformer
from mini.batches import IGNORE, Batch
from mini.losses import alignment_loss, edit_loss, mask_loss, prototype_scores
from mini.probe import Probe
from rism.evaluation.scenes.kinds import COLOUR_NAMES, KIND_NAMES

PERCEPTION_BLOCK = 2  # its output predicts kinds and colours
GROUNDING_BLOCK = 4  # its output predicts the tokens of the object to remove
ALIGNED_BLOCKS = range(3, CONFIG.double_blocks + CONFIG.single_blocks)
FIRST_STEP_SHARE = 0.8  # of the samples are at sigma = 1

WEIGHTS = {
    "edit": 1.0,
    "cam": 0.1,
    "ram": 0.15,
    "mask": 1.0,
    "kinds": 0.4,
    "colours": 0.1,
    "target": 1.0,
    "named": 0.2,
    "words": 5.0,
}


class Learner(nn.Module):
    """The text encoder and the DiT of the checkpoint, and linear heads that are discarded.

    `probe` reads each pass, and also keeps the outputs of the two early blocks.
    """

    def __init__(self, tokenizer: Qwen2TokenizerFast) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(len(tokenizer), tokenizer.pad_token_id)
        self.transformer = build_transformer()
        width = CONFIG.heads * CONFIG.head_dim
        embedded = len(CONFIG.text_out_layers) * CONFIG.text_hidden
        self.kind_head = nn.Linear(width, 1 + len(KIND_NAMES))
        self.colour_head = nn.Linear(width, 1 + len(COLOUR_NAMES))
        self.target_head = nn.Linear(width, 1)
        self.named_head = nn.Linear(embedded, len(KIND_NAMES))
        self.words_head = nn.Linear(embedded, len(tokenizer))
        self.log_sharpness = nn.Parameter(torch.tensor(2.5))
        self.probe = Probe(blocks=ALIGNED_BLOCKS, feature_block=CONFIG.feature_block)
        for name, index in (("perception", PERCEPTION_BLOCK), ("grounding", GROUNDING_BLOCK)):
            block = self.transformer.single_transformer_blocks[index - CONFIG.double_blocks]
            block.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, _module: nn.Module, _args: object, out: torch.Tensor) -> None:
        self.probe.hidden[name] = out

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings (B, P, 3 * hidden): three hidden states side by side."""
        model = self.text_encoder.model
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in CONFIG.text_out_layers], dim=-1)


@dataclass(frozen=True)
class StepOptions:
    """The random choices of one step.

    Attributes:
        noisy_tokens: number of noisy tokens that the DiT gets, a random subset.
        own_region: share of samples whose prototypes come from the model's own RAM > 0.8
            instead of the true object.
        generator: source of all randomness in the step.
    """

    noisy_tokens: int
    own_region: float
    generator: torch.Generator


def step_losses(
    learner: Learner, batch: Batch, clean: torch.Tensor, edited: torch.Tensor, options: StepOptions
) -> dict[str, torch.Tensor]:
    """The losses of one batch; `clean` and `edited` are tokens (B, N_v, C)."""
    probe = learner.probe
    cover = F.avg_pool2d(batch.mask.unsqueeze(1), CONFIG.token_px).flatten(1)
    prompt = learner.embed(batch.input_ids, batch.attention_mask)
    losses = {"edit": _edit(learner, batch, prompt, clean, edited, cover, options)}
    blocks = sorted(probe.coarse)
    losses["cam"] = torch.stack([alignment_loss(probe.coarse[b], cover) for b in blocks]).mean()
    losses["ram"] = torch.stack([alignment_loss(probe.refined[b], cover) for b in blocks]).mean()
    region = _region(probe, cover, options)
    scores = prototype_scores(probe.features, region)
    sharpness = learner.log_sharpness.exp()
    losses["mask"] = mask_loss(scores, batch.mask, batch.grid_hw, sharpness)
    return losses | _perception(learner, batch, cover) | _prompt(learner, batch, prompt)


def _edit(
    learner: Learner,
    batch: Batch,
    prompt: torch.Tensor,
    clean: torch.Tensor,
    edited: torch.Tensor,
    cover: torch.Tensor,
    options: StepOptions,
) -> torch.Tensor:
    """Run the DiT and compare its velocity with noise minus the edited image."""
    count, tokens, _ = clean.shape
    draw = options.generator
    kept = torch.randperm(tokens, generator=draw)[: options.noisy_tokens].sort().values
    first = torch.rand(count, generator=draw) < FIRST_STEP_SHARE
    sigma = torch.where(first, torch.ones(count), torch.rand(count, generator=draw))
    x0 = edited[:, kept]
    noise = torch.randn(x0.shape, generator=draw)
    level = sigma.view(-1, 1, 1)
    length = prompt.shape[1]
    grid = torch.empty(1, 1, *batch.grid_hw)
    noisy_ids = Flux2KleinPipeline._prepare_latent_ids(grid)[:, kept]
    clean_ids = Flux2KleinPipeline._prepare_image_ids([grid])
    with learner.probe.reading(prompt_length=length, clean_start=length + len(kept)):
        predicted = learner.transformer(
            hidden_states=torch.cat([(1 - level) * x0 + level * noise, clean], dim=1),
            encoder_hidden_states=prompt,
            timestep=sigma,
            img_ids=torch.cat([noisy_ids, clean_ids], dim=1),
            txt_ids=Flux2KleinPipeline._prepare_text_ids(prompt[:1]),
            return_dict=False,
        )[0][:, : len(kept)]
    return edit_loss(predicted, noise - x0, cover[:, kept])


@torch.no_grad()
def _region(probe: Probe, cover: torch.Tensor, options: StepOptions) -> torch.Tensor:
    """Region of the prototypes (B, N_v): the model's own or the object's core."""
    total = torch.stack(list(probe.refined.values())).sum(0)
    low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
    own = ((total - low) / (high - low) > 0.8).float()
    true = (cover > 0.7 * cover.amax(1, keepdim=True)).float()
    use_own = torch.rand(len(cover), 1, generator=options.generator) < options.own_region
    return torch.where(use_own, own, true)


def _perception(learner: Learner, batch: Batch, cover: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of kinds and colours after an early block, and of the named object after another."""
    count, tokens = cover.shape
    repeat = count // batch.source.shape[0]
    seen = learner.probe.hidden["perception"][:, -tokens:].float()
    losses = {}
    for name, head in (("kinds", learner.kind_head), ("colours", learner.colour_head)):
        labels = getattr(batch, name).repeat_interleave(repeat, 0)
        losses[name] = F.cross_entropy(head(seen).transpose(1, 2), labels, ignore_index=IGNORE)
    named = learner.target_head(learner.probe.hidden["grounding"][:, -tokens:].float())[..., 0]
    losses["target"] = F.binary_cross_entropy_with_logits(named, cover, weight=1 + 4 * cover)
    return losses


def _prompt(learner: Learner, batch: Batch, prompt: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses that predict the words of the prompt from the embeddings of its padding.

    The padding follows the words, so it can summarise them, and image tokens attend to it more
    easily than to a word at any position. Without these two losses colours were grounded within
    300 steps, kinds not within 1,250.
    """
    after = prompt.float()[:, -8:].mean(1)
    words = torch.zeros(len(after), learner.words_head.out_features)
    words.scatter_(1, batch.input_ids, 1.0)
    return {
        "named": F.cross_entropy(learner.named_head(after), batch.named_kinds, ignore_index=IGNORE),
        "words": F.binary_cross_entropy_with_logits(learner.words_head(after), words),
    }
