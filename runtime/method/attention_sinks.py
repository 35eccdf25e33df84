"""Prompt tokens that the whole picture looks at: found, and weighed out in a second pass.

RefAM (arXiv 2509.22650) calls them global attention sinks: they take much attention from
everywhere and say nothing of where the object is.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.errors import BundleError, InputError
from rism.runtime.method.postprocess import ExpressionOutput

__all__ = ["expect_token_attention", "find_sinks", "without_sinks"]

Float32: TypeAlias = npt.NDArray[np.float32]

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_HIGH = 5.0  # times the median over tokens
_EVEN = 0.75  # standard deviation over mean


def find_sinks(
    token_attention: Float32, weights: Float32, *, high: float = _HIGH, even: float = _EVEN
) -> npt.NDArray[np.bool_]:
    """Find tokens whose attention is high and near-uniform over the picture.

    With m and s the mean and the standard deviation of a token's attention over the N_v
    positions, it is a sink where m > `high` times the median of m over the tokens that count,
    and s / m < `even`. So fewer than half of the tokens that count can be sinks.

    Args:
        token_attention: (N_v, N_p) float32, not negative; what is not finite makes no sink.
        weights: (N_p,) float32; tokens of weight zero do not count, and are no sinks.
        high: 5 by default.
        even: 0.75 by default.

    Returns:
        (N_p,) bool.
    """
    counted: npt.NDArray[np.bool_] = weights != 0
    if not counted.any():
        return counted
    seen = token_attention.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean, spread = seen.mean(axis=0), seen.std(axis=0)
        typical = np.median(mean[counted])
        return np.asarray(counted & (mean > high * typical) & (spread < even * mean))


def without_sinks(
    answers: Sequence[ExpressionOutput],
    weights: Float32,
    again: Callable[[list[int], Float32], Sequence[ExpressionOutput]],
) -> tuple[list[ExpressionOutput], list[tuple[int, ...]]]:
    """ExpressionOutput once more, without sinks, for the prompts that have some.

    Args:
        answers: of the first pass, with token attention.
        weights: (B, N_p) float32 of the first pass.
        again: runs a second pass for some rows with their weights (rows, N_p); not called where
            no prompt has a sink.

    Returns:
        The answers, and for each the places of its sinks in the prompt.

    Raises:
        BundleError: the engine gave no token attention, though the manifest promised it.
    """
    sinks = np.zeros(weights.shape, np.bool_)
    for row, answer in enumerate(answers):
        if answer.token_attention is None:
            raise BundleError(
                "the transformer returned no 'token_attention', expected it as the manifest has "
                "it: export the bundle again, or build its engines again"
            )
        sinks[row] = find_sinks(answer.token_attention, weights[row])
    final, rows = list(answers), np.flatnonzero(sinks.any(axis=1)).tolist()
    if rows:
        better = again(rows, np.where(sinks, np.float32(0), weights)[rows])
        for row, answer in zip(rows, better, strict=True):
            final[row] = answer
    return final, [tuple(np.flatnonzero(each).tolist()) for each in sinks]


def expect_token_attention(graph: GraphSpec, capture: str) -> None:
    """Refuse to look for sinks where nothing says what each token is looked at.

    Raises:
        InputError: the graph has no such output.
    """
    if "token_attention" not in graph.outputs:
        raise InputError(
            f"sinks are found in attention per token, which 'transformer.{capture}' of this "
            "bundle does not give, expected output 'token_attention': rism export --model MODEL "
            "-o DIR --token-attention, or go without sinks"
        )
