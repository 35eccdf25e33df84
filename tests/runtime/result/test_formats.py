"""A result as an annotation of COCO, a line of YOLO, polygons, and supervision's Detections."""

import sys

import numpy as np
import pytest

from rism.runtime.errors import RismError
from rism.runtime.result.rle import decode_rle
from tests.runtime.result.masks import MASKS, segmented


def test_a_result_as_an_annotation() -> None:
    result = segmented(MASKS["parts"], "the parts", 0.5)
    found = result.to_coco(annotation_id=3, image_id=4, category_id=5)
    assert found is not None
    assert [len(found["segmentation"]), found["area"]] == [2, MASKS["parts"].sum()]
    assert found["bbox"] == [31, 31, 239, 179]
    assert [found[key] for key in ("id", "image_id", "category_id", "iscrowd", "score")] == [
        3, 4, 5, 0, 0.5,
    ]  # fmt: skip
    exact = result.to_coco(rle=True)
    assert exact is not None and np.array_equal(
        decode_rle(exact["segmentation"]["counts"], (240, 320)), result.mask
    )
    number, *shares = result.to_yolo(category=2).split(" ")
    assert number == "2" and float(max(shares[::2])) == pytest.approx(269.25 / 320)
    assert [len(part) for part in result.to_polygons()] == [1, 1]
    few, all_points = result.to_polygons(epsilon=2), result.to_polygons(epsilon=0)
    assert len(few[0][0]) < 20 < len(all_points[0][0])


def test_an_empty_mask_is_no_annotation() -> None:
    empty = segmented(MASKS["empty"], "nothing")
    assert (empty.to_coco(), empty.to_yolo(), empty.to_polygons()) == (None, "", [])


def test_supervision() -> None:
    pytest.importorskip("supervision")
    found = segmented(MASKS["parts"], "the parts", 0.5).to_supervision(class_id=3)
    assert found.xyxy.tolist() == [[31, 31, 270, 210]] and found.confidence.tolist() == [0.5]
    assert np.array_equal(found.mask[0], MASKS["parts"])
    assert (found.class_id.tolist(), found["class_name"].tolist()) == ([3], ["the parts"])
    assert len(segmented(MASKS["empty"], "nothing").to_supervision()) == 0


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("supervision", "contourpy"):
        monkeypatch.setitem(sys.modules, name, None)
    result = segmented(MASKS["parts"], "the parts")
    with pytest.raises(RismError, match=r"to_supervision needs supervision: pip .*supervision\]"):
        result.to_supervision()
    with pytest.raises(RismError, match=r"polygons need contourpy: pip .*formats\]"):
        result.to_yolo()
