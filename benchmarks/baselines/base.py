"""What every way of capturing that is measured has in common."""

from dataclasses import dataclass

import torch

from rism.export.attention_capture import Capture


@dataclass
class VectorsCapture(Capture):
    """A capture that says itself what a graph of it gives out: by default a, T a, features."""

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """a, (B, L, N_v), T a, likewise, and features, (B, N_v, D), once the pass is over."""
        assert self.features is not None
        vectors = torch.stack(self.attention_vectors, dim=1)
        return vectors, torch.stack(self.propagated_vectors, dim=1), self.features
