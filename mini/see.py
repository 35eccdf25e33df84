"""The first part of the training of `mini`: both encoders learn what there is to see and to say.

The image encoder's tokens show the kind, colours and look of what each of them covers, and their
own pixels; the padding of the prompt says what the prompt means (`mini.concepts`).
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2TokenizerFast

from mini.architecture import CONFIG, build_text_encoder, build_vae
from mini.batches import Batch, Prompts
from mini.concepts import Spaces
from mini.encoder import Eye, patch_components, set_stem
from mini.scenes import SceneMaker
from mini.sheets import Sheet

_SHRINK = 2  # the pixels that a token shows are averaged over 2 x 2
SEE_WEIGHTS = {"kinds": 1.0, "colours": 0.3, "looks": 0.1, "pixels": 0.5}
SAY_WEIGHTS = {"kind": 1.0, "anchor": 1.0, "colour": 1.0, "look": 1.0, "other": 20.0}


class Encoders(nn.Module):
    """The autoencoder and the text encoder of the checkpoint, and heads that are thrown away.

    Where `maker` is None the encoder's stem is left to a state that is loaded.
    """

    def __init__(
        self, tokenizer: Qwen2TokenizerFast, maker: SceneMaker | None, images: int = 300
    ) -> None:
        super().__init__()
        self.vae = build_vae()
        if maker is not None:
            set_stem(self.vae, *patch_components(maker, images))
        self.text_encoder = build_text_encoder(len(tokenizer), tokenizer.pad_token_id)
        self.spaces = Spaces(CONFIG.token_channels, CONFIG.embedded)
        side = CONFIG.token_px // _SHRINK
        self.pixels = nn.Linear(CONFIG.token_channels, 3 * side * side)

    def eye(self) -> Eye:
        """The image encoder in the form that is trained, with the same weights."""
        return Eye(self.vae)

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings (B, P, 3 * hidden): three hidden states side by side."""
        model = self.text_encoder.model
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in CONFIG.text_out_layers], dim=-1)


def see_losses(encoders: Encoders, eye: Eye, batch: Sheet | Batch) -> dict[str, torch.Tensor]:
    """The losses of the image encoder."""
    tokens = eye(batch.source)
    small = F.avg_pool2d(batch.source, _SHRINK)
    wanted = F.pixel_unshuffle(small, CONFIG.token_px // _SHRINK).flatten(2).transpose(1, 2)
    found = {"pixels": F.mse_loss(encoders.pixels(tokens).float(), wanted) / wanted.var()}
    if isinstance(batch, Sheet):
        return found | {"kinds": encoders.spaces.kind_loss(tokens, batch.kinds)}
    return found | encoders.spaces.seen_losses(tokens, batch.kinds, batch.colours, batch.looks)


def say_losses(encoders: Encoders, prompts: Prompts) -> dict[str, torch.Tensor]:
    """The losses of the text encoder."""
    embedded = encoders.embed(prompts.input_ids, prompts.attention_mask)
    return encoders.spaces.said_losses(embedded, prompts.said)


def draw_losses(encoders: Encoders, eye: Eye, batch: Batch) -> dict[str, torch.Tensor]:
    """The loss of the decoder, on cut-outs of a quarter of each side."""
    with torch.no_grad():
        latents = eye.latents(batch.source)
    # What an editor draws is not exact, so the decoder learns from what is not.
    latents = latents + 0.05 * latents.std() * torch.randn_like(latents)
    height, width = (side // 4 for side in latents.shape[2:])
    rows, columns = (int(torch.randint(3 * side + 1, ())) for side in (height, width))
    cut = latents[:, :, rows : rows + height, columns : columns + width]
    scale = CONFIG.token_px // 2
    wanted = batch.source[
        :, :, rows * scale : (rows + height) * scale, columns * scale : (columns + width) * scale
    ]
    drawn = encoders.vae.decode(cut).sample.float()
    return {"drawn": F.l1_loss(drawn, wanted) + F.mse_loss(drawn, wanted)}


@torch.no_grad()
def see_scores(encoders: Encoders, eye: Eye, batch: Batch) -> dict[str, float]:
    """Shares of the tokens of things, and of others, whose kind is right."""
    was = eye.training
    found = encoders.spaces.seen("kind", eye.eval()(batch.source)).argmax(-1)
    eye.train(was)
    right = found == batch.kinds
    return {
        "things": right[batch.kinds > 0].float().mean().item(),
        "background": right[batch.kinds == 0].float().mean().item(),
    }


@torch.no_grad()
def say_scores(encoders: Encoders, prompts: Prompts) -> dict[str, float]:
    """Shares of prompts whose kind, and whose colour, is right."""
    embedded = encoders.embed(prompts.input_ids, prompts.attention_mask)
    found = {}
    for name in ("kind", "colour", "anchor"):
        best = encoders.spaces.said(name, embedded).argmax(-1, keepdim=True)
        found[name] = (prompts.said[name].gather(1, best) > 0).float().mean().item()
    return found
