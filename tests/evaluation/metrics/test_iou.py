"""Metrics against brute force, pixel by pixel and pair by pair."""

import itertools
import math

import numpy as np
import pytest

from rism.evaluation.metrics.boundary_iou import boundary, boundary_width
from rism.evaluation.metrics.iou import METRICS, Overlap, auroc, overlap, summarise
from rism.runtime.errors import InputError


def slow_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The definition: repeated 3 x 3 erosions of a mask in a frame of zeros."""
    held = np.pad(mask, 1)
    for _ in range(width):
        smaller = np.zeros_like(held)
        for y, x in np.argwhere(held):
            smaller[y, x] = held[y - 1 : y + 2, x - 1 : x + 2].all()
        held = smaller
    return mask & ~held[1:-1, 1:-1]


def test_a_boundary_is_what_repeated_erosion_takes() -> None:
    rng = np.random.default_rng(0)
    shapes, widths, shares = [(1, 1), (1, 9), (7, 1), (12, 17), (23, 16)], [1, 2, 3, 6], [0.6, 0.97]
    for shape, width, share in itertools.product(shapes, widths, (*shares, 1.0)):
        mask = rng.random(shape) < share
        assert np.array_equal(boundary(mask, width), slow_boundary(mask, width))
    assert boundary(np.ones((31, 20), bool), 2).sum() == 31 * 20 - 27 * 16


def test_the_width_is_a_share_of_the_diagonal_and_at_least_a_pixel() -> None:
    assert boundary_width((480, 640)) == 16
    assert boundary_width((10, 10)) == 1


def test_overlaps_count_pixels() -> None:
    found, true = np.zeros((2, 40, 60), bool)
    found[5:25, 10:40] = True
    true[10:30, 20:50] = True
    got = overlap(found, true)
    assert got.intersection == 15 * 20 and got.union == 2 * 20 * 30 - 15 * 20
    width = boundary_width((40, 60))
    edges = slow_boundary(found, width), slow_boundary(true, width)
    assert got.boundary_intersection == int((edges[0] & edges[1]).sum())
    assert got.boundary_union == int((edges[0] | edges[1]).sum())
    assert overlap(true, true).iou == overlap(true, true).boundary_iou == 1.0


def test_an_empty_union_is_an_iou_of_zero() -> None:
    nothing = np.zeros((8, 8), bool)
    assert overlap(nothing, nothing) == Overlap(0, 0, 0, 0)
    got = summarise([overlap(nothing, nothing)])
    assert got == {"n": 1, **dict.fromkeys(METRICS, 0.0)}
    assert summarise([]) == {"n": 0}


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 x 2 pixels .* 2 x 2, expected the same size"):
        overlap(np.zeros((2, 3), bool), np.zeros((2, 2), bool))


def test_a_summary_by_hand() -> None:
    got = summarise([Overlap(1, 2, 1, 4), Overlap(9, 10, 0, 5), Overlap(0, 8, 3, 4)])
    assert got["n"] == 3
    assert got["mIoU"] == pytest.approx((0.5 + 0.9 + 0) / 3)
    assert got["oIoU"] == 10 / 20
    assert [got[f"P@0.{bar}"] for bar in (5, 6, 7, 8, 9)] == pytest.approx([2 / 3, *[1 / 3] * 4])
    assert got["boundary IoU"] == pytest.approx((0.25 + 0 + 0.75) / 3)
    got = summarise([Overlap(7, 10, 0, 1)])  # an IoU equal to a threshold reaches it
    assert got["P@0.7"] == 1.0 and got["P@0.8"] == 0.0


def test_the_order_of_samples_changes_no_digit() -> None:
    rng = np.random.default_rng(3)
    unions = rng.integers(1, 10_000, 3000)
    overlaps = [Overlap(int(rng.integers(0, n + 1)), int(n), 1, int(n)) for n in unions]
    got = summarise(overlaps)
    shuffled = [overlaps[i] for i in rng.permutation(len(overlaps))]
    assert summarise(shuffled) == got
    assert got["mIoU"] == math.fsum(one.iou for one in overlaps) / 3000


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        positive = rng.integers(0, 12, rng.integers(1, 30)).astype(float).tolist()
        negative = rng.integers(0, 12, rng.integers(1, 30)).astype(float).tolist()
        pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative)]
        assert auroc(positive, negative) == pytest.approx(float(np.mean(pairs)), abs=1e-12)
    assert auroc([2.0], [1.0]) == 1.0
    with pytest.raises(InputError, match="both classes"):
        auroc([1.0], [])
