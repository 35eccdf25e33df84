"""Polygons, drawn again by pycocotools."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rism.runtime.result.polygons import polygons, without_holes


def _shapes() -> dict[str, NDArray[np.bool_]]:
    y, x = np.mgrid[:120, :160]
    disc = (x - 70) ** 2 + (y - 60) ** 2 < 45**2
    ring = disc & ((x - 75) ** 2 + (y - 55) ** 2 > 20**2)
    noise = np.random.default_rng(0).random((15, 20)).repeat(8, 0).repeat(8, 1) > 0.5
    return {
        "disc": disc,
        "ring": ring,
        "two": disc ^ (x > 130),
        "edges": (x < 3) | (y > 100),
        "everything": np.ones((120, 160), bool),
        "blocks": noise,
    }


def _drawn(mask: NDArray[np.bool_], epsilon: float) -> NDArray[np.bool_]:
    import pycocotools.mask as coco

    rings = [without_holes(part).ravel().tolist() for part in polygons(mask, epsilon=epsilon)]
    drawn = [coco.decode(each) for each in coco.frPyObjects(rings, *mask.shape)]
    return np.any(drawn, axis=0)


@pytest.mark.parametrize("name", _shapes())
def test_a_mask_is_drawn_again(name: str) -> None:
    mask = _shapes()[name]
    for epsilon, least in ((0.25, 0.999), (0.5, 0.975)):
        drawn = _drawn(mask, epsilon)
        assert (drawn & mask).sum() / (drawn | mask).sum() > least


def test_parts_and_holes() -> None:
    [[outline, hole]] = polygons(_shapes()["ring"])
    assert len(outline) < 60 and 3 <= len(hole) < 40
    assert len(polygons(_shapes()["two"])) == 2
    assert polygons(np.zeros((5, 5), bool)) == []
    [[dot]] = polygons(np.pad(np.ones((1, 1), bool), 2))
    assert dot.mean(0).tolist() == [2.5, 2.5]
