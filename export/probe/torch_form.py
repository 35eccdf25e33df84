"""The probe in attentions that say their log-sum-exp: PyTorch on any device, no kernel of ours.

With L_i over all keys and L_i^S over some keys S, exp(L_i^S - L_i) is the mass of row i on S,
and attention over S alone gives shares of that mass. So the keys in between need no visit.
"""

import torch
from torch.nn import functional as F

from rism.export.probe.attention import attention


def probe_vectors(
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
    statistics: torch.Tensor | None = None,
    *,
    value_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """a_l and T_l a_l, as `rism.export.probe.probe_vectors`.

    Args:
        q: (B, heads, N_v, d), the clean tokens' queries.
        k: (B, heads, N, d), all keys: [prompt; noisy; clean].
        weights: w, (B, N_p) float32.
        statistics: (B, heads, N_v), L_i of these rows over all keys; None to find them out.
        value_scale: w and a_l are multiplied by it where they have the type of `q`: a power of
            two keeps small ones above float16's smallest normal number.

    Returns:
        Two of (B, N_v), in the type of the statistics.
    """

    def read(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention with (B, keys) values that all heads share, as wide as a head."""
        wide = F.pad((values * value_scale).to(q.dtype).unsqueeze(-1), (0, q.shape[-1] - 1))
        shared = wide.unsqueeze(1).expand(-1, k.shape[1], -1, -1)
        out, level = attention(q, keys, shared)
        return out[..., 0].to(level.dtype) / value_scale, level

    prompt, clean = weights.shape[1], q.shape[2]
    if statistics is None:
        masses, statistics = read(k, F.pad(weights, (0, k.shape[2] - prompt)))
    else:
        shares, level = read(k[:, :, :prompt], weights)
        masses = shares * (level - statistics).exp()
    a = masses.mean(1)
    within, level = read(k[:, :, k.shape[2] - clean :], a)
    to_clean = (level - statistics).exp()
    return a, (to_clean * within).mean(1) / to_clean.mean(1)
