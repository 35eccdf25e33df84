"""One of several alike: parts against a flood fill, and which of them the words mean."""

from collections import deque
from itertools import product

import numpy as np
import pytest

from rism.runtime.expression.spatial_words import Cues
from rism.runtime.method.instances import components, one_instance, spatial_prior


def flooded(mask_hw: np.ndarray) -> tuple[np.ndarray, int]:
    """Label parts by filling each from its first pixel."""
    labels, count = np.zeros(mask_hw.shape, np.intp), 0
    for first in zip(*np.nonzero(mask_hw), strict=True):
        if labels[first]:
            continue
        count += 1
        labels[first], left = count, deque([first])
        while left:
            row, column = left.popleft()
            for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                near = row + down, column + across
                inside = all(0 <= a < n for a, n in zip(near, mask_hw.shape, strict=True))
                if inside and mask_hw[near] and not labels[near]:
                    labels[near] = count
                    left.append(near)
    return labels, count


ROWS, COLUMNS = np.indices((21, 33))
PATTERNS = {
    "all": np.ones((5, 7), bool),
    "none": np.zeros((5, 7), bool),
    "no rows": np.zeros((0, 7), bool),
    "no columns": np.zeros((5, 0), bool),
    "one token": np.ones((1, 1), bool),
    "a checkerboard": (ROWS + COLUMNS) % 2 == 0,
    "columns": COLUMNS % 2 == 0,
    "rows": ROWS % 2 == 0,
    "a comb": (COLUMNS % 2 == 0) | (ROWS == 20),
    "rings": np.maximum(abs(ROWS - 10), abs(COLUMNS - 16)) % 2 == 0,
    "corners that touch": (ROWS // 3 + COLUMNS // 3) % 2 == 0,
    "a zigzag": (ROWS + abs(COLUMNS % 8 - 4)) % 5 == 0,
}


def test_components_equal_a_flood_fill() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 40), (40, 1), (2, 17), (17, 2), (32, 32)]
    masks = [rng.random(shape) < share for shape in shapes for share in (0.1, 0.4, 0.6, 0.9)]
    for mask_hw in [*PATTERNS.values(), *masks]:
        for turned in (mask_hw, mask_hw.T, mask_hw[::-1], mask_hw[:, ::-1]):
            labels, count = components(turned)
            true, true_count = flooded(turned)
            assert count == true_count
            # In the order of first pixels, too.
            np.testing.assert_array_equal(labels, true)


@pytest.mark.parametrize(
    ("cues", "expected"),
    [
        (Cues(across=-1), [[0.875, 0.625, 0.375, 0.125]] * 2),
        (Cues(across=1), [[0.125, 0.375, 0.625, 0.875]] * 2),
        (Cues(down=-1), [[0.75] * 4, [0.25] * 4]),
        (Cues(down=1), [[0.25] * 4, [0.75] * 4]),
        (
            Cues(across=1, down=-1),
            [[0.09375, 0.28125, 0.46875, 0.65625], [0.03125, 0.09375, 0.15625, 0.21875]],
        ),
        (Cues(middle=True), [[0.25, 0.5, 0.5, 0.25]] * 2),
    ],
)
def test_priors_are_ramps(cues: Cues, expected: list[list[float]]) -> None:
    found = spatial_prior(cues, (2, 4))
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-6)


@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 9), (9, 1), (64, 64)])
def test_priors_are_above_nothing(grid_hw: tuple[int, int]) -> None:
    assert spatial_prior(Cues(size=1), grid_hw) is None
    for across, down, middle in product((-1, 0, 1), (-1, 0, 1), (False, True)):
        prior = spatial_prior(Cues(across, down, middle), grid_hw)
        if prior is None:
            assert not (across or down or middle)
            continue
        assert prior.shape == (grid_hw[0] * grid_hw[1],)
        assert 0 < prior.min() <= prior.max() <= 1


GRID_HW = (6, 12)


def scene(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Scores of 1 in boxes (top, left, bottom, right) and -0.5 around them."""
    scores = np.full(GRID_HW, -0.5, np.float32)
    for top, left, bottom, right in boxes:
        scores[top:bottom, left:right] = 1
    return scores


SMALL, LARGE, SPECK = (0, 0, 2, 2), (1, 5, 6, 11), (5, 1, 6, 2)


def kept(scores: np.ndarray, cues: Cues, weights: np.ndarray | None = None) -> np.ndarray:
    given = np.ones(scores.size, np.float32) if weights is None else weights
    prior = spatial_prior(cues, GRID_HW)
    given = given if prior is None else given * prior
    before = scores.copy()
    found = one_instance(scores.ravel(), given, cues, GRID_HW)
    np.testing.assert_array_equal(scores, before)
    assert found.shape == (scores.size,) and found.dtype == np.float32
    return found.reshape(GRID_HW)


@pytest.mark.parametrize(
    ("cues", "boxes", "meant"),
    [
        (Cues(size=-1), (SMALL, LARGE), SMALL),
        (Cues(size=1), (SMALL, LARGE), LARGE),
        # A speck is no small object; it may be a small one's if there is nothing larger.
        (Cues(size=-1), (SMALL, LARGE, SPECK), SMALL),
        (Cues(size=-1), (SMALL, SPECK), SPECK),
        (Cues(across=-1), (SMALL, (0, 9, 2, 11)), SMALL),
        (Cues(across=1), (SMALL, (0, 9, 2, 11)), (0, 9, 2, 11)),
        (Cues(down=1), (SMALL, (4, 0, 6, 2)), (4, 0, 6, 2)),
        (Cues(down=-1), (SMALL, (4, 0, 6, 2)), SMALL),
        (Cues(middle=True), ((2, 0, 4, 2), (2, 5, 4, 7), (2, 10, 4, 12)), (2, 5, 4, 7)),
        (Cues(across=1, size=-1), (SMALL, (0, 4, 5, 9), (4, 10, 6, 12)), (4, 10, 6, 12)),
    ],
)
def test_the_one_that_words_mean(
    cues: Cues, boxes: tuple[tuple[int, int, int, int], ...], meant: tuple[int, int, int, int]
) -> None:
    scores = scene(*boxes)
    found = kept(scores, cues)
    np.testing.assert_array_equal(found > 0, scene(meant) > 0)
    # Nothing but the sign of other parts changes.
    np.testing.assert_array_equal(abs(found), abs(scores))


def test_attention_tells_parts_of_one_size_apart() -> None:
    weights = np.full(GRID_HW, 0.1, np.float32)
    weights[0:2, 9:11] = 0.9
    found = kept(scene(SMALL, (0, 9, 2, 11)), Cues(size=-1), weights.ravel())
    np.testing.assert_array_equal(found > 0, scene((0, 9, 2, 11)) > 0)


@pytest.mark.parametrize("cues", [Cues(), Cues(across=-1)])
def test_nothing_changes_without_words_or_with_one_part(cues: Cues) -> None:
    scores = scene(SMALL, LARGE) if cues == Cues() else scene(LARGE)
    flat = scores.ravel()
    assert one_instance(flat, np.ones(flat.size, np.float32), cues, GRID_HW) is flat


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_none_and_all_are_no_parts(value: float) -> None:
    flat = np.full(72, value, np.float32)
    assert one_instance(flat, np.ones(72, np.float32), Cues(across=1, size=1), GRID_HW) is flat


def test_a_map_without_mass_keeps_one_part() -> None:
    found = one_instance(
        scene(SMALL, LARGE).ravel(), np.zeros(72, np.float32), Cues(across=1), GRID_HW
    )
    assert components(found.reshape(GRID_HW) > 0)[1] == 1


def test_several_things_are_all_kept() -> None:
    scores = np.full(GRID_HW, -1, np.float32)
    scores[0, 0] = scores[-1, -1] = 1
    flat, weights = scores.ravel(), np.ones(scores.size, np.float32)
    assert one_instance(flat, weights, Cues(across=-1, several=True), GRID_HW) is flat
    assert (one_instance(flat, weights, Cues(across=-1), GRID_HW) > 0).sum() == 1
