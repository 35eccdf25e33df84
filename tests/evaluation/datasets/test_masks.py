"""True masks are drawn as the public evaluators draw them, and broken ones are named."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rism.evaluation.datasets.masks import check_segmentation, decode_segmentation
from rism.runtime.errors import InputError
from tests.evaluation.datasets.refcoco_files import runs

SIZE_HW = (40, 60)
LEFT = [5.0, 5.0, 30.0, 5.0, 30.0, 30.0, 5.0, 30.0]
RIGHT = [20.0, 10.0, 50.5, 10.0, 50.5, 35.0, 20.0, 35.0]
AWAY = [52.0, 2.0, 58.0, 2.0, 55.0, 8.0]


def decode(found: Any, merge: str = "legacy") -> np.ndarray:
    return decode_segmentation(
        check_segmentation(found, "annotation 7"), SIZE_HW, merge=merge, where="annotation 7"
    )


def layers(polygons: Any) -> np.ndarray:
    """What REFER's getMask adds up: (H, W, parts)."""
    return coco_mask.decode(coco_mask.frPyObjects(polygons, *SIZE_HW))


def test_polygons_as_pycocotools_draws_them() -> None:
    rng = np.random.default_rng(0)
    cases = [[LEFT, RIGHT, AWAY], [LEFT]]
    assert (layers(cases[0]).sum(axis=2) == 2).any()
    for _ in range(60):
        polygons = [
            rng.uniform(-8, 68, 2 * int(rng.integers(3, 9))).round(2).tolist()
            for _ in range(int(rng.integers(1, 5)))
        ]
        cases.append(polygons)
    for polygons in cases:
        times = layers(polygons).sum(axis=2)
        np.testing.assert_array_equal(decode(polygons), times == 1)
        np.testing.assert_array_equal(decode(polygons, "union"), times > 0)
    np.testing.assert_array_equal(decode(LEFT), decode([LEFT]))


def test_rle_of_both_kinds() -> None:
    mask_hw = np.random.default_rng(1).random(SIZE_HW) < 0.3
    compressed = coco_mask.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    for found in (runs(mask_hw), compressed, text, [text]):
        np.testing.assert_array_equal(decode(found), mask_hw)
    np.testing.assert_array_equal(decode([text, runs(mask_hw)]), np.zeros(SIZE_HW))
    np.testing.assert_array_equal(decode([text, runs(mask_hw)], "union"), mask_hw)


def size(counts: Any, size_hw: Any = (40, 60)) -> dict[str, Any]:
    return {"size": list(size_hw), "counts": counts}


BROKEN: list[tuple[Any, str]] = [
    ([[*LEFT, 3.0]], "polygon 0 of annotation 7 has 9 numbers, expected x and y"),
    ([LEFT, [1, 2, 3, 4]], "polygon 1 of annotation 7 has 2 points, expected at least 3"),
    ([[]], "polygon 0 of annotation 7 has 0 points"),
    ([[0, 0, 9, 0, float("nan"), 9]], "not finite"),
    ([[0, 0, 9, 0, float("inf"), 9]], "not finite"),
    ([[0, 0, 9, 0, 10**400, 9]], "not finite"),
    ([[0, 0, 9, 0, 1e12, 9]], r"polygon 0 .* a point at \(1e\+12, 9\), far outside"),
    ([[0, 0, 9, -500, 9, 9]], "far outside its image of 60 x 40"),
    ([[0, 0, 9, "9", 9, 9]], "coordinates that are not numbers"),
    ([[0, 0, 9, True, 9, 9]], "coordinates that are not numbers"),
    (["polygon"], "is 'polygon', expected a list of numbers"),
    ([[0, 0, 59, 39] * 20_000], "outline longer than"),
    ([], "has no outline"),
    (None, "has no outline"),
    ("text", "has no outline"),
    (7, "has no outline"),
    ([LEFT] * 5000, "5000 parts"),
    (size([10, 20]), "does not add up to its size"),
    (size([2400, -5, 5]), "does not add up to its size"),
    (size([2400.0]), "does not add up to its size"),
    (size("22"), "annotation 7: the RLE string does not describe a mask of 40 x 60"),
    (size("\x00\xff"), "annotation 7: "),
    (size("0" * 20_000), "longer than any of its size"),
    (size(None), "has no counts"),
    (size([10**12 * 10**12], (10**12, 10**12)), "has the size"),
    (size([], (40, 0)), "has the size"),
    (size([50000 * 50000], (50000, 50000)), "too many"),
    (size([2400], (60, 40)), "is of 40 x 60 pixels, its image of 60 x 40"),
    ({"counts": "22"}, "has no size"),
    ([size([2400]), [1, 2]], "polygon 1 of annotation 7 has 1 points"),
    ([LEFT], "'xor': use legacy or union"),
]


def test_broken_ones_are_named() -> None:
    for found, message in BROKEN:
        with pytest.raises(InputError, match=message):
            decode(found, "xor" if "xor" in message else "legacy")
