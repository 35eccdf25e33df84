"""Baseline: the same transformer with nothing read off it, the floor of any capture.

Source: the models' own forward passes (diffusers' FLUX.2 and Step1X-Edit), cut where ours is cut.
Run eager it is what PyTorch does, run by torch.compile what a compiler makes of it.
"""

from dataclasses import dataclass

import torch

from benchmarks.baselines.base import VectorsCapture


@dataclass
class NoCapture(VectorsCapture):
    """Attention and features only.

    The last block's queries and keys are summed up and given out: a compiler would drop every
    block after l' if nothing came of it, and the baseline would be a shorter model.
    """

    last: tuple[torch.Tensor, ...] = ()

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        """See `Capture`: nothing is read, and the last block's inputs are kept."""
        del index, statistics
        self.last = (q_clean, k)

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """Features, and what shows that the last block was run."""
        assert self.features is not None
        # One channel of each: a mean of all was fused into loops that took ten times the model.
        used = torch.cat([part[..., 0].float() for part in self.last], dim=2)
        return self.features, used
