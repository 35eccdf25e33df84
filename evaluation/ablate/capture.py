"""Captures everything that the ablations need in one pass."""

from dataclasses import dataclass, field

import torch

from rism.export.attention_capture import Capture


@dataclass
class WideCapture(Capture):
    """Captures the features of many blocks and sites.

    Attributes:
        blocks: numbers of the blocks whose features are kept.
        sites: of these features in a block.
        storage: number type of the kept features.
        watching: false for a step that only leads to another: nothing is kept.
        kept: features (B, N_v, D) by site and block.
    """

    blocks: frozenset[int] = frozenset()
    sites: tuple[str, ...] = ()
    storage: torch.dtype = torch.float32
    watching: bool = True
    kept: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def keep(self, site: str, index: int, clean_tokens: torch.Tensor) -> None:
        """Keep (B, N_v, D) of a site and block if both are selected."""
        if self.watching and site in self.sites and index in self.blocks:
            self.kept[site, index] = _narrow(clean_tokens, self.storage)

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        """See `Capture.probe`; does nothing in a step that is not watched."""
        if self.watching:
            super().probe(index, q_clean, k, statistics)


def _narrow(features: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """Convert features to a type; to 16 bits after dividing each token by its largest number.

    The residual stream of FLUX exceeds float16's largest number, and the scale of a token does not
    matter: features are L2-normalised by token before they are used.
    """
    wide = features.float()
    if storage == torch.float32:
        return wide.clone()
    largest = wide.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / largest).to(storage)
