"""The method: from attention vectors and features to a score map (arXiv 2605.13122).

Pure functions over NumPy arrays. For one expression: L blocks, N image tokens, D feature
channels. Nothing larger than the features
themselves is ever built: upsampling is linear, so equation 6's argmax over D x H x W is the sign
of one upsampled N_h x N_w map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rism.runtime.arrays import Array

# Below this relative span a float32 sum over blocks is rounding, not signal.
_CONSTANT_SPAN = 1e-6
# Half a megabyte of features fits in a core's cache, and BLAS multiplies it by two rows on one
# thread: waiting for a second one costs more than it saves.
_BLOCK_VALUES = 2**17

ATTENTION_NOT_FINITE = "the attention map is not finite"
ATTENTION_CONSTANT = "the attention map is constant"
FEATURES_NOT_FINITE = "the features are not finite"


@dataclass(frozen=True)
class Localisation:
    """Result of the method for one expression, on the token grid.

    Attributes:
        scores: (N,) float32, positive on the object; zeros where degenerate.
        coarse: (N,) float32 in [0, 1], equation 3 (CAM).
        refined: (N,) float32 in [0, 1], equation 4 (RAM).
        separability: Fisher's score of the two classes; 0 where there is only one.
        reason: why there is no result, or None.
    """

    scores: Array
    coarse: Array
    refined: Array
    separability: float
    reason: str | None = None


def minmax(values: Array) -> Array:
    """Scale to [0, 1]; zeros where the values are constant or not finite."""
    if degenerate_reason(values) is not None:
        return np.zeros(values.shape, np.float32)
    low = values.min()
    scaled: Array = ((values - low) / (values.max() - low)).astype(np.float32)
    return scaled


def degenerate_reason(values: Array) -> str | None:
    """Return why no region can be found in a raw map (N,), before `minmax`; None if one can."""
    if not np.isfinite(values).all():
        return ATTENTION_NOT_FINITE
    low, high = float(values.min()), float(values.max())
    if high - low <= _CONSTANT_SPAN * max(abs(low), abs(high)):
        return ATTENTION_CONSTANT
    return None


def coarse_map(attention_vectors: Array) -> Array:
    """Equation 3: CAM = minmax(sum_l a_l). (L, N) to (N,) float32."""
    return minmax(attention_vectors.sum(axis=0))


def refined_map(propagated_vectors: Array) -> Array:
    """Equation 4: RAM = minmax(sum_l T_l a_l). (L, N) to (N,) float32."""
    return minmax(propagated_vectors.sum(axis=0))


def propagate(transition_matrices: Array, attention_vectors: Array) -> Array:
    """T_l a_l of every block: (L, N, N) and (L, N) to (L, N)."""
    return (transition_matrices @ attention_vectors[..., None])[..., 0]


def localise(features: Array, region: Array, *, rule: str = "equation") -> tuple[Array, float]:
    """Equations 5 and 6 on the token grid, and the separability of the two classes.

    The prototypes P of equation 5 are the means of the L2-normalised features F over the region
    and over the rest. The scores F . (P_fg - P_bg) are equation 6 before its argmax. Fisher's
    score |mu_1 - mu_0|^2 / (sigma2_1 + sigma2_0) (equation 2, A1-A3) of the classes that the
    scores' signs make says how far apart they are.

    Args:
        features: (N, D) float32, as the model gives them.
        region: (N,) bool, M = RAM > tau.
        rule: "equation" leaves the prototypes as they are, as equation 6 uses them; "cosine"
            normalises them, as the paper's text says.

    Returns:
        (N,) float32 scores, and the separability; 0 if one class has no tokens.
    """
    inverse = np.empty(features.shape[0], np.float32)
    sums = np.zeros((2, features.shape[1]), np.float32)
    for rows in _blocks(features):
        inverse[rows] = _inverse_norms(features[rows])
        sums += _class_sums(features[rows], region[rows], inverse[rows])
    prototypes, _ = _means(sums, region, inverse)
    if rule == "cosine":
        length = np.sqrt((prototypes * prototypes).sum(axis=1, keepdims=True))
        prototypes = prototypes / np.where(length > 0, length, 1)
    elif rule != "equation":
        raise ValueError(f"prototype rule is {rule!r}, expected 'equation' or 'cosine'")
    scores = np.empty(features.shape[0], np.float32)
    sums = np.zeros_like(sums)
    # The sums of a block follow from its scores, so that features are read twice, not thrice.
    for rows in _blocks(features):
        block = features[rows]
        scores[rows] = _dots(block, prototypes[0] - prototypes[1]) * inverse[rows]
        sums += _class_sums(block, scores[rows] > 0, inverse[rows])
    mask = scores > 0
    if not mask.any() or mask.all():
        return scores, 0.0
    return scores, _fisher(*_means(sums, mask, inverse))


def segment_tokens(
    attention_vectors: Array,
    propagated_vectors: Array,
    features: Array,
    *,
    tau: float,
    rule: str = "equation",
    prior: Array | None = None,
) -> Localisation:
    """The whole method for one expression (docs/bundle.md, step 6).

    Args:
        attention_vectors: (L, N) float32, a_l.
        propagated_vectors: (L, N) float32, T_l a_l.
        features: (N, D) float32.
        tau: region threshold in [0, 1).
        rule: see `localise`.
        prior: (N,) float32 in [0, 1], multiplies the refined map before tau; None as published.
    """
    coarse = coarse_map(attention_vectors)
    raw = propagated_vectors.sum(axis=0)
    reason = degenerate_reason(raw)
    refined = minmax(raw)
    nothing = np.zeros(features.shape[0], np.float32)
    if reason is not None:
        return Localisation(nothing, coarse, refined, 0.0, reason)
    weighted = refined if prior is None else minmax(refined * np.asarray(prior))
    scores, fisher = localise(features, weighted > tau, rule=rule)
    if not np.isfinite(scores).all():
        return Localisation(nothing, coarse, refined, 0.0, FEATURES_NOT_FINITE)
    return Localisation(scores, coarse, refined, fisher)


def _fisher(means: Array, squares: Array) -> float:
    # With |F| = 1 the mean squared distance to the class mean is 1 - |mu|^2.
    apart = means[0] - means[1]
    within = float(squares.sum()) - float((means * means).sum())
    between = float(apart @ apart)
    # Rounding leaves about 1e-7 where every class is a single point.
    return between / max(within, 1e-6)


def _class_sums(block: Array, region: Array, inverse_norms: Array) -> Array:
    """Sums of L2-normalised rows over a region and the rest: (n, D) to (2, D)."""
    # (M / |F|) F, instead of a normalised copy of F.
    weights = np.empty((2, block.shape[0]), np.float32)
    weights[0] = region * inverse_norms
    weights[1] = inverse_norms - weights[0]
    return weights @ block


def _means(sums: Array, region: Array, inverse_norms: Array) -> tuple[Array, Array]:
    """From sums over classes to their means (2, D) and mean squared lengths (2,)."""
    member = np.stack([region, ~region]).astype(np.float32)
    count = np.maximum(member.sum(axis=1), 1)
    return sums / count[:, None], member @ (inverse_norms != 0).astype(np.float32) / count


def _dots(rows: Array, other: Array) -> Array:
    """Products of each row with its own row of another array, or with one vector: (n,)."""
    # Many small products: np.einsum takes three times as long.
    return (rows[:, None, :] @ other[..., None])[:, 0, 0]


def _inverse_norms(features: Array) -> Array:
    """1 / |F| per token, and 0 for a zero vector."""
    square = _dots(features, features)
    return 1 / np.where(square > 0, np.sqrt(square), np.inf)


def _blocks(features: Array) -> Iterator[slice]:
    """Rows that fit in a core's cache, so that norms and sums read memory once."""
    rows, channels = features.shape
    step = max(1, _BLOCK_VALUES // channels)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
