"""Attention-sink tokens: detected after one pass, and weighted 0 in a second one.

RefAM (arXiv 2509.22650) calls them global attention sinks: prompt tokens that take much attention
from the whole image and carry no information on where the object is.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rism.runtime.arrays import BoolArray, Float32
from rism.runtime.bundle.graph_spec import GraphSpec
from rism.runtime.errors import BundleError, InputError
from rism.runtime.method.postprocess import ExpressionOutput

# Chosen on the tuning split of drawn scenes; docs/quality.md.
_HIGH = 5.0  # times the median over tokens
_EVEN = 0.75  # standard deviation over mean


def find_sinks(token_attention: Float32, weights: Float32) -> BoolArray:
    """Find tokens whose attention is high and near-uniform over the image.

    With m and s the mean and the standard deviation of a token's attention over the N_v
    positions, it is a sink where m > 5 times the median of m over the tokens of non-zero weight,
    and s / m < 0.75. So fewer than half of these tokens can be sinks.

    Args:
        token_attention: (N_v, N_p) float32, not negative; a token with values that are not finite
            is no sink.
        weights: (N_p,) float32; a token of weight zero is no sink.

    Returns:
        (N_p,) bool.
    """
    counted: BoolArray = weights != 0
    if not counted.any():
        return counted
    seen = token_attention.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean, spread = seen.mean(axis=0), seen.std(axis=0)
        typical = np.median(mean[counted])
        return np.asarray(counted & (mean > _HIGH * typical) & (spread < _EVEN * mean))


def without_sinks(
    outputs: Sequence[ExpressionOutput],
    weights: Float32,
    run_again: Callable[[list[int], Float32], Sequence[ExpressionOutput]],
) -> tuple[list[ExpressionOutput], list[tuple[int, ...]]]:
    """Run again, with the sinks' weights set to 0, for the prompts that have sinks.

    Args:
        outputs: of the first pass, with token attention.
        weights: (B, N_p) float32 of the first pass.
        run_again: runs a second pass for some rows with their weights (rows, N_p); not called
            where no prompt has a sink.

    Returns:
        The outputs, and for each the indices of its sinks in the prompt.

    Raises:
        BundleError: the engine returned no token attention, though the manifest lists it.
    """
    sinks = np.zeros(weights.shape, np.bool_)
    for row, output in enumerate(outputs):
        if output.token_attention is None:
            raise BundleError(
                "the transformer returned no 'token_attention', expected it as the manifest has "
                "it: export the bundle again, or build its engines again"
            )
        sinks[row] = find_sinks(output.token_attention, weights[row])
    final, rows = list(outputs), np.flatnonzero(sinks.any(axis=1)).tolist()
    if rows:
        second = run_again(rows, np.where(sinks, np.float32(0), weights)[rows])
        for row, output in zip(rows, second, strict=True):
            final[row] = output
    return final, [tuple(np.flatnonzero(each).tolist()) for each in sinks]


def expect_token_attention(graph: GraphSpec, capture: str) -> None:
    """Check that a graph returns attention per token, which the detection of sinks needs.

    Raises:
        InputError: the graph has no such output.
    """
    if "token_attention" not in graph.outputs:
        raise InputError(
            f"sinks are detected by attention per token, which 'transformer.{capture}' of this "
            "bundle does not return, expected output 'token_attention': rism export --model MODEL "
            "-o DIR --token-attention, or run without sinks"
        )
