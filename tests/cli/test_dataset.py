"""Datasets: read again by the tools they are for, resumed, and what is refused."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rism.cli.dataset import Dataset
from rism.cli.delivery import SegmentedImage
from rism.cli.inputs import find_inputs
from rism.cli.list_files import Categories
from rism.runtime.names import DatasetFormatName
from tests.cli.dataset_readers import READERS, Reader, supervision_coco, supervision_labelme
from tests.runtime.result.masks import MASKS, Mask, iou, segmented

CATEGORIES = Categories(('the "left" <van> & co: 车 🚗',), {"van": 0})


def write(
    name: DatasetFormatName, masks: Mapping[str, Mask], folder: Path, *, rle: bool
) -> tuple[Path, Path]:
    """Write a dataset of an image for each mask; return its folder and that of the images."""
    images = folder / "photos"
    images.mkdir()
    for stem, mask in masks.items():
        Image.new("RGB", mask.shape[::-1]).save(images / f"{stem}.png")
    inputs = find_inputs([str(images)], expressions=["van"]).images
    dataset = Dataset(name, CATEGORIES, inputs, output=str(folder / "out"), rle=rle, epsilon=None)
    assert dataset.left(inputs, resume=False, skip_existing=False) == inputs
    dataset.prepare(inputs)
    for image in inputs:
        mask = masks[image.stem]
        pixels = np.zeros((*mask.shape, 3), np.uint8)
        found = SegmentedImage(pixels, [segmented(mask, "van", 0.5)], None)
        dataset.add(dataset.encode(image, found))
    dataset.finish(complete=True)
    return folder / "out", images


def cases() -> Iterator[tuple[DatasetFormatName, bool, Reader]]:
    """Yield format, whether masks are written pixel by pixel, and what reads them."""
    for name, readers in READERS.items():
        for reader in readers:
            for rle in {"yolo": (False,), "png": (True,)}.get(name, (False, True)):
                if (reader, rle) not in UNFIT:
                    yield name, rle, reader


UNFIT = [
    (supervision_coco, False),  # it draws the pixels along the outline, too: docs/formats.md
    (supervision_labelme, True),  # it leaves masks out
]


@pytest.mark.parametrize(("name", "rle", "reader"), list(cases()))
def test_masks_are_read_again(
    tmp_path: Path, name: DatasetFormatName, rle: bool, reader: Reader
) -> None:
    folder, images = write(name, MASKS, tmp_path, rle=rle and name != "png")
    found = reader(folder, images, (240, 320))
    assert {category for _, category in found} == set(CATEGORIES.names)
    for stem, mask in MASKS.items():
        same = iou(found.get((stem, CATEGORIES.names[0]), np.zeros_like(mask)), mask)
        assert same == 1 if rle else same >= 0.98, stem
