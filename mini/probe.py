"""Attention for training that computes the probabilities, which the losses need."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.transformers import transformer_flux2 as flux2


class Probe:
    """Captures the method's quantities in a forward pass of a `Flux2Transformer2DModel`.

    After a pass `coarse[l]` and `refined[l]` (B, N_v) float32 are a_l and T_l a_l of `blocks`,
    and `features` (B, N_v, D) is the attention output of `feature_block`.
    """

    def __init__(self, *, blocks: range, feature_block: int):
        self.blocks, self.feature_block = blocks, feature_block
        self.hidden: dict[str, torch.Tensor] = {}  # outputs of whole blocks, by name
        self.coarse: dict[int, torch.Tensor] = {}
        self.refined: dict[int, torch.Tensor] = {}
        self._features: torch.Tensor | None = None

    @contextmanager
    def reading(self, *, prompt_length: int, clean_start: int) -> Iterator[None]:
        """Take the place of diffusers' attention function for one pass with these spans."""
        self.prompt_length, self.clean_start = prompt_length, clean_start
        self.coarse, self.refined, self._features = {}, {}, None
        self._block = -1
        original = flux2.dispatch_attention_fn
        flux2.dispatch_attention_fn = self.attend
        try:
            yield
        finally:
            flux2.dispatch_attention_fn = original

    @property
    def features(self) -> torch.Tensor:
        """Attention output of the feature block in the last pass, (B, N_v, D)."""
        assert self._features is not None, "no forward pass yet"
        return self._features

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """Attention of the next block, (B, N, heads, d) tensors to another."""
        self._block += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype)
        out: torch.Tensor = (probabilities @ v).transpose(1, 2)
        if self._block in self.blocks:
            rows = probabilities[:, :, self.clean_start :].mean(1).float()
            a = rows[:, :, : self.prompt_length].sum(-1)
            to_clean = rows[:, :, self.clean_start :]
            propagated = (to_clean @ a.unsqueeze(-1)).squeeze(-1)
            self.coarse[self._block] = a
            self.refined[self._block] = propagated / to_clean.sum(-1).clamp_min(1e-9)
        if self._block == self.feature_block:
            self._features = out[:, self.clean_start :].flatten(2)
        return out
