"""Queries, keys and weights of every awkward size, and what equations 1 to 4 say of them."""

from dataclasses import dataclass

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """Of one block: all queries, all keys, (B, heads, N, d), and w, (B, prompt)."""

    q: torch.Tensor
    k: torch.Tensor
    weights: torch.Tensor
    clean: int

    @property
    def clean_queries(self) -> torch.Tensor:
        return self.q[:, :, -self.clean :]

    def statistics(self) -> torch.Tensor:
        """L of the clean rows over all keys, float32 as kernels give it."""
        q, k = self.clean_queries.double(), self.k.double()
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).logsumexp(-1).float()


@dataclass(frozen=True)
class ProbeCase:
    """Sizes; `loud` multiplies the scores, `weights` is how w is drawn."""

    batch: int = 1
    heads: int = 2
    prompt: int = 12
    noisy: int = 33
    clean: int = 33
    dim: int = 16
    loud: float = 1.0
    weights: str = "uneven"

    def inputs(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        generator = torch.Generator().manual_seed(self.clean + self.dim)
        tokens = self.prompt + self.noisy + self.clean

        def normal() -> torch.Tensor:
            # As projections leave them: tokens before heads.
            shape = self.batch, tokens, self.heads, self.dim
            drawn = torch.randn(shape, generator=generator) * self.loud**0.5
            return drawn.to(device, dtype).transpose(1, 2)

        w = torch.rand(self.batch, self.prompt, generator=generator)
        if self.weights == "ones":
            w = torch.ones_like(w)
        elif self.weights == "few":
            # Whole tiles without a weight, and a different word in each sentence.
            keep = torch.arange(self.prompt)[None] // 3 == 1 + torch.arange(self.batch)[:, None]
            w = w * keep
        elif self.weights == "none":
            w = torch.zeros_like(w)
        return Inputs(normal(), normal(), w.to(device), self.clean)


CASES = {
    "odd sizes": ProbeCase(),
    "one head": ProbeCase(heads=1, clean=17, noisy=5),
    "whole tiles": ProbeCase(prompt=32, noisy=32, clean=64, heads=3, dim=32),
    "a head of 24": ProbeCase(dim=24, clean=31, noisy=47),
    "a head of 128": ProbeCase(dim=128, clean=35, noisy=20, heads=4),
    "three sentences": ProbeCase(batch=3, prompt=40, clean=20, noisy=20, weights="few"),
    "a prompt of tiles": ProbeCase(prompt=77, clean=19, noisy=21, weights="ones"),
    "no weights": ProbeCase(weights="none", clean=18, noisy=18),
    # Rows whose mass lies on one key, far above what an exponential of the bare score can hold.
    "loud scores": ProbeCase(loud=120.0, clean=33, noisy=7, prompt=5),
}


def assert_literal(found: Pair, given: Inputs, *, rtol: float, atol: float) -> None:
    """What a kernel found, in float32, is what the equations say."""
    assert {value.dtype for value in found} == {torch.float32}
    wanted = literal(given)
    torch.testing.assert_close(tuple(found), wanted, rtol=rtol, atol=atol, check_dtype=False)


def literal(inputs: Inputs) -> Pair:
    """a_l and T_l a_l in float64 with every matrix stored: equations 1, 3 and 4."""
    q, k, w = inputs.clean_queries.double(), inputs.k.double(), inputs.weights.double()
    rows = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(1)
    a = (rows[:, :, : w.shape[1]] @ w.unsqueeze(-1))[..., 0]
    to_clean = rows[:, :, -inputs.clean :]
    transition = to_clean / to_clean.sum(-1, keepdim=True)
    return a, (transition @ a.unsqueeze(-1))[..., 0]
