"""Capture of everything the ablations look at, in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rism.export.attention_capture import Capture

__all__ = ["WideCapture"]


@dataclass
class WideCapture(Capture):
    """Keeps the features of many blocks and sites.

    Attributes:
        blocks: whose features are kept, in the order they run.
        sites: where in each of them.
        storage: number type of what is kept.
        watching: false for a step that is only on the way to another: nothing is kept.
        kept: (B, N_v, D) by site and block.
    """

    blocks: frozenset[int] = frozenset()
    sites: tuple[str, ...] = ()
    storage: torch.dtype = torch.float32
    watching: bool = True
    kept: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def keep(self, site: str, index: int, clean_tokens: torch.Tensor) -> None:
        """Offer (B, N_v, D) of one site; kept if it is among those asked for."""
        if self.watching and site in self.sites and index in self.blocks:
            self.kept[site, index] = _narrow(clean_tokens, self.storage)

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        """See `Capture.probe`; a step that is only on the way is not probed."""
        if self.watching:
            super().probe(index, q_clean, k, statistics)


def _narrow(features: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """Bring features to a type; to 16 bits with each token's largest number at one.

    The residual stream of FLUX passes float16's largest number, and features are L2-normalised
    by token before anything is done with them.
    """
    wide = features.float()
    if storage == torch.float32:
        return wide.clone()
    largest = wide.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / largest).to(storage)
