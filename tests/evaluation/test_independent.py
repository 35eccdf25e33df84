"""A scorer that shares nothing with rism but pycocotools: the scores are equal, digit by digit.

It reads the pickle with Python's own reader and follows the public evaluators (REFER's getMask
and the test loop of LAVT): polygons decoded one by one and added up, the pixels where the sum is
1, one sample a sentence, sums of integers, shares of their quotients.
"""

import json
import math
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from rism.evaluation.datasets.open import open_dataset
from rism.evaluation.datasets.request import DatasetRequest
from rism.evaluation.metrics.iou import overlap, summarise
from tests.evaluation.datasets.refcoco_files import IMAGES


def by_rule(image_hwc: np.ndarray, expression: str) -> np.ndarray:
    """Pixels far from the middle of the image's colours; nothing for one sentence in four."""
    far = np.abs(image_hwc.astype(int) - np.median(image_hwc, axis=(0, 1))).sum(axis=2)
    return (far > 90) & (len(expression) % 4 != 0)


def independent_counts(root: Path, split: str) -> list[tuple[int, int]]:
    """Intersection and union of each sentence."""
    refs = pickle.loads((root / "refcoco" / "refs(unc).p").read_bytes())
    instances = json.loads((root / "refcoco" / "instances.json").read_text())
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    images = {entry["id"]: entry for entry in instances["images"]}
    counts = []
    for ref in refs:
        if ref["split"] != split:
            continue
        about = images[ref["image_id"]]
        found = annotations[ref["ann_id"]]["segmentation"]
        if isinstance(found, list) or isinstance(found["counts"], list):
            found = coco_mask.frPyObjects(found, about["height"], about["width"])
        times = coco_mask.decode(found)
        true_hw = (times if times.ndim == 2 else np.sum(times, axis=2)) == 1
        image_hwc = np.array(Image.open(root / IMAGES / about["file_name"]).convert("RGB"))
        for sentence in ref["sentences"]:
            found_hw = by_rule(image_hwc, sentence["raw"].strip())
            intersection = int(np.logical_and(found_hw, true_hw).sum())
            counts.append((intersection, int(np.logical_or(found_hw, true_hw).sum())))
    return counts


def independent_scores(root: Path, split: str) -> dict[str, float]:
    counts = independent_counts(root, split)
    ious = [i / u if u else 0.0 for i, u in counts]
    scores = {
        "n": len(ious),
        "mIoU": math.fsum(ious) / len(ious),
        "oIoU": sum(i for i, _ in counts) / sum(u for _, u in counts),
    }
    for bar in (0.5, 0.6, 0.7, 0.8, 0.9):
        scores[f"P@{bar}"] = sum(iou >= bar for iou in ious) / len(ious)
    return scores


def scores(root: Path, split: str, merge: str = "legacy") -> dict[str, float]:
    dataset = open_dataset(DatasetRequest("refcoco", root=root, split=split, gt_merge=merge))
    assert not dataset.problems
    found = summarise(
        overlap(by_rule(dataset.image(sample), sample.expression), dataset.mask(sample))
        for sample in dataset.samples
    )
    del found["boundary IoU"]
    return found


def test_the_scores_are_those_of_the_independent_scorer(refer_root: Path) -> None:
    assert (0, 0) in independent_counts(refer_root, "val"), "an empty union is among them"
    for split in ("val", "testA"):
        expected = independent_scores(refer_root, split)
        assert scores(refer_root, split) == expected
        assert 0.1 < expected["mIoU"] < 1
    assert scores(refer_root, "val", merge="union")["mIoU"] > scores(refer_root, "val")["mIoU"]
