"""Polygons, drawn again by pycocotools and by Pillow."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rism.runtime.names import EPSILON
from rism.runtime.result.polygons import pixel_polygons, polygons, without_holes
from tests.runtime.result.masks import MASKS, iou


def _by_coco(mask: NDArray[np.bool_], epsilon: float) -> NDArray[np.bool_]:
    import pycocotools.mask as coco

    rings = [without_holes(part).ravel().tolist() for part in polygons(mask, epsilon=epsilon)]
    drawn = [coco.decode(each) for each in coco.frPyObjects(rings, *mask.shape)] if rings else []
    return np.any([np.zeros(mask.shape), *drawn], axis=0)


def _by_pillow(mask: NDArray[np.bool_], *, joined: bool) -> NDArray[np.bool_]:
    drawn = Image.new("1", mask.shape[::-1])
    rings = [without_holes(part) for part in pixel_polygons(mask)]
    for ring in [without_holes(rings)] if joined and rings else rings:
        ImageDraw.Draw(drawn).polygon([(x, y) for x, y in ring], fill=1, outline=1)
    return np.asarray(drawn)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_drawn_again(name: str) -> None:
    mask = MASKS[name]
    assert iou(_by_coco(mask, 0.25), mask) == 1
    assert iou(_by_coco(mask, EPSILON), mask) > 0.999
    assert iou(_by_pillow(mask, joined=False), mask) > 0.998
    assert iou(_by_pillow(mask, joined=True), mask) > 0.99


def test_parts_and_holes() -> None:
    [[outline, hole]] = polygons(MASKS["ring"])
    assert len(outline) < 170 and 3 <= len(hole) < 100
    assert len(polygons(MASKS["parts"])) == 2
    assert polygons(MASKS["empty"]) == []
    [[dot]] = polygons(MASKS["dot"])
    assert dot.mean(0).tolist() == [50.5, 60.5]
    y, x = np.nonzero(MASKS["dot"])
    assert pixel_polygons(MASKS["dot"])[0][0].tolist() == [[x, y]] * 4


def test_many_long_rings_are_joined_in_time() -> None:
    noise = np.random.default_rng(0).random((200, 300)) > 0.5
    assert iou(_by_pillow(noise, joined=True), noise) > 0.9
