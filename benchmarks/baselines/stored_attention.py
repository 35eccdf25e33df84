"""Baseline: the paper's literal capture in PyTorch, attention stored for every block.

Source: arXiv 2605.13122, equations 1, 3 and 4, and what its table A1 is a measurement of.
"""

from dataclasses import dataclass, field

import torch

from benchmarks.baselines.base import VectorsCapture


@dataclass
class StoredAttention(VectorsCapture):
    """Equations 1, 3 and 4 as written.

    Attention is computed once, by an explicit softmax, and the rows of the clean tokens are
    stored for every block and head until the pass is over.
    """

    stored: list[torch.Tensor] = field(default_factory=list)

    def attend(self, index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Capture`: a softmax that is written out, once, and kept."""
        compute, start = self.precision.compute, self.spans.clean_start
        probabilities = self._probabilities(q.to(compute), k.to(compute))
        out = (probabilities @ v.to(compute)).transpose(1, 2).flatten(2).to(q.dtype)
        self.stored.append(self._kept(probabilities[:, :, start:]))
        self.keep("mmsa", index, out[:, start:])
        return out

    def probe(
        self,
        index: int,
        q_clean: torch.Tensor,
        k: torch.Tensor,
        statistics: torch.Tensor | None = None,
    ) -> None:
        """See `Capture`: of the last block rows are all that is asked."""
        del index, statistics
        compute = self.precision.compute
        self.stored.append(self._kept(self._probabilities(q_clean.to(compute), k.to(compute))))

    def _probabilities(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        keys = k.transpose(-1, -2).flatten(0, 1)
        scores = q.new_empty(keys.shape[0], q.shape[2], k.shape[2])
        scale = q.shape[-1] ** -0.5  # of the product, which costs nothing here
        scores = torch.baddbmm(scores, q.flatten(0, 1), keys, beta=0, alpha=scale)
        return scores.softmax(-1).reshape(*q.shape[:3], -1)

    def _kept(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities.clone()  # a view would keep the other tokens' rows, too

    def outputs(self) -> tuple[torch.Tensor, ...]:
        """See `VectorsCapture`, from what was stored."""
        weights = self.prompt_weights.unsqueeze(-1)
        for rows in self.stored:
            mean = rows.mean(1, dtype=torch.float32)
            a = (mean[:, :, : self.spans.prompt] @ weights)[..., 0]
            to_clean = mean[:, :, self.spans.clean_start :]
            transition = to_clean / to_clean.sum(-1, keepdim=True)
            self.attention_vectors.append(a)
            self.propagated_vectors.append((transition @ a.unsqueeze(-1))[..., 0])
        return super().outputs()


@dataclass
class StoredMean(StoredAttention):
    """The same, but for each block the heads' mean is stored."""

    def _kept(self, probabilities: torch.Tensor) -> torch.Tensor:
        return probabilities.mean(1, keepdim=True)
