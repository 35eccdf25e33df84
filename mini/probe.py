"""Attention for training that computes the probabilities, which the losses need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers import transformer_flux2 as flux2


class _Attention(torch.autograd.Function):
    """Attention of (B, H, N, d) tensors, and the mean of its probabilities over heads (B, N, N).

    PyTorch's own differentiation of these lines passes over the probabilities twice as often.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        batch, heads, length, _ = q.shape
        scale = q.shape[-1] ** -0.5
        q, k, v = ((x.flatten(0, 1)) for x in (q * scale, k, v))
        probabilities = torch.bmm(q, k.mT).softmax(-1)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale = scale
        by_head = probabilities.view(batch, heads, length, -1)
        return torch.bmm(probabilities, v).view(batch, heads, length, -1), by_head.mean(1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        of_out, of_mean = gradients
        q, k, v, probabilities = ctx.saved_tensors
        batch, heads, length, _ = of_out.shape
        of_out = of_out.flatten(0, 1)
        of_p = torch.bmm(of_out, v.mT).view(batch, heads, length, -1)
        of_p += (of_mean / heads).to(q.dtype).unsqueeze(1)
        of_s = torch._softmax_backward_data(of_p.flatten(0, 1), probabilities, -1, q.dtype)
        # Products in the order that copies only the small operand.
        found = (
            torch.bmm(of_s, k) * ctx.scale,
            torch.bmm(q.mT, of_s).mT,
            torch.bmm(of_out.mT, probabilities).mT,
        )
        return tuple(x.reshape(batch, heads, length, -1) for x in found)


class _Rotation(torch.autograd.Function):
    """Rotary embedding as one complex product; its derivative turns back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(turn)
        return _turned(x, turn)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (turn,) = ctx.saved_tensors
        return _turned(gradients[0], turn.conj()), None


def _turned(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    x32 = x.to(torch.float32, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(x32.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def rotate(
    x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], *, sequence_dim: int
) -> torch.Tensor:
    """Diffusers' `apply_rotary_emb` of (B, N, H, d) with cosines and sines (N, d), faster."""
    assert sequence_dim == 1, "heads come after the sequence"
    cosine, sine = (values[:, None, ::2] for values in angles)
    turned: torch.Tensor = _Rotation.apply(x, torch.complex(cosine, sine))  # type: ignore[no-untyped-call]
    return turned


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
        """Take the place of diffusers' attention and rotation for one pass with these spans."""
        self.prompt_length, self.clean_start = prompt_length, clean_start
        self.coarse, self.refined, self._features = {}, {}, None
        self._block = -1
        originals = flux2.dispatch_attention_fn, flux2.apply_rotary_emb
        flux2.dispatch_attention_fn, flux2.apply_rotary_emb = self.attend, rotate
        try:
            yield
        finally:
            flux2.dispatch_attention_fn, flux2.apply_rotary_emb = originals

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
        q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
        out, mean = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
        out = out.transpose(1, 2)
        if self._block in self.blocks:
            rows = mean[:, self.clean_start :].float()
            a = rows[:, :, : self.prompt_length].sum(-1)
            to_clean = rows[:, :, self.clean_start :]
            propagated = (to_clean @ a.unsqueeze(-1)).squeeze(-1)
            self.coarse[self._block] = a
            self.refined[self._block] = propagated / to_clean.sum(-1).clamp_min(1e-9)
        if self._block == self.feature_block:
            self._features = out[:, self.clean_start :].flatten(2)
        return out  # type: ignore[no-any-return]
