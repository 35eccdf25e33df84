"""The method inside the graph, for the `scores` capture: equations 3 to 6 in PyTorch.

`rism.runtime.method.equations` is the same arithmetic in NumPy; the parity gate compares them.
"""

import torch
from torch.nn import functional as F

# As in rism.runtime.method.equations: below this relative span a sum over blocks is rounding.
_CONSTANT_SPAN = 1e-6
_TINY = 1e-6


def _minmax(raw: torch.Tensor) -> torch.Tensor:
    """Scale rows (B, N_v) to [0, 1]; zeros where a row is constant or not finite."""
    low, high = raw.amin(1, keepdim=True), raw.amax(1, keepdim=True)
    span = high - low
    # A comparison with NaN is false, and so is inf > inf: no separate test is needed.
    usable = span > _CONSTANT_SPAN * torch.maximum(low.abs(), high.abs())
    return torch.where(usable, (raw - low) / torch.where(usable, span, 1.0), 0.0)


def _means(unit: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (B, 2, D) of unit features (B, N_v, D) over a region and the rest; their counts."""
    member = torch.stack([region, 1 - region], dim=1)
    count = member.sum(-1, keepdim=True)
    return (member @ unit) / count.clamp_min(1.0), count[..., 0]


def score_map(
    attention_vectors: torch.Tensor,
    propagated_vectors: torch.Tensor,
    features: torch.Tensor,
    tau: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equations 3 to 6 on the token grid.

    Args:
        attention_vectors: a_l, (B, L, N_v).
        propagated_vectors: T_l a_l, (B, L, N_v).
        features: (B, N_v, D).
        tau: (1,) region threshold.

    Returns:
        Scores (B, N_v); coarse and refined attention, (B, N_v) in [0, 1]; separability (B,).
    """
    coarse = _minmax(attention_vectors.sum(1))
    refined = _minmax(propagated_vectors.sum(1))
    region = (refined > tau).to(features.dtype)
    unit = F.normalize(features, dim=-1)
    means, counts = _means(unit, region)
    apart = (means[:, 0] - means[:, 1]).unsqueeze(-1)
    answered = (counts.amin(1, keepdim=True) > 0).to(features.dtype)
    scores = (unit @ apart)[..., 0] * answered
    predicted = (scores > 0).to(features.dtype)
    found, sizes = _means(unit, predicted)
    between = (found[:, 0] - found[:, 1]).square().sum(-1)
    # With |F| = 1 the mean squared distance to the class mean is 1 - |mu|^2.
    within = (1 - found.square().sum(-1)).sum(-1)
    both = (sizes.amin(1) > 0).to(features.dtype)
    return scores, coarse, refined, both * between / within.clamp_min(_TINY)
