"""Datasets read by the tools that they are for: every mask of an image, by its category.

A reader takes the folder of the dataset, that of the images, and the size of an image.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from rism.runtime.names import DatasetFormatName
from tests.runtime.result.masks import Mask

Masks = Mapping[tuple[str, str], Mask]
"""Masks by the stem of the image and the name of the category; those that are empty may lack."""
Reader = Callable[[Path, Path, tuple[int, int]], Masks]


def _or(masks: dict[tuple[str, str], Mask], key: tuple[str, str], mask: Mask) -> None:
    masks[key] = masks[key] | mask if key in masks else mask


def pycocotools(folder: Path, _: Path, __: tuple[int, int]) -> Masks:
    from pycocotools.coco import COCO

    coco = COCO(folder / "annotations.json")
    found: dict[tuple[str, str], Mask] = {}
    for each in coco.loadAnns(coco.getAnnIds()):
        image, category = coco.imgs[each["image_id"]], coco.cats[each["category_id"]]
        mask = coco.annToMask(each).astype(bool)
        assert each["iscrowd"] == 0
        box, true = each["bbox"], np.argwhere(mask)
        if isinstance(each["segmentation"], list):
            assert all(len(ring) >= 6 for ring in each["segmentation"])
        else:
            assert each["area"] == mask.sum()
            assert box[:2] == true.min(0)[::-1].tolist()
        _or(found, (Path(image["file_name"]).stem, category["name"]), mask)
    return found


def _detections(dataset: object) -> Masks:
    found: dict[tuple[str, str], Mask] = {}
    for path, detections in dataset.annotations.items():  # type: ignore[attr-defined]
        for mask, category in zip(
            () if detections.mask is None else detections.mask, detections.class_id, strict=True
        ):
            name = dataset.classes[category]  # type: ignore[attr-defined]
            _or(found, (Path(path).stem, name), np.asarray(mask, bool))
    return found


def supervision_coco(folder: Path, images: Path, _: tuple[int, int]) -> Masks:
    supervision = pytest.importorskip("supervision")
    return _detections(
        supervision.DetectionDataset.from_coco(
            str(images), str(folder / "annotations.json"), force_masks=True
        )
    )


def supervision_yolo(folder: Path, _: Path, __: tuple[int, int]) -> Masks:
    supervision = pytest.importorskip("supervision")
    return _detections(
        supervision.DetectionDataset.from_yolo(
            str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"),
            force_masks=True,
        )
    )  # fmt: skip


def ultralytics_yolo(folder: Path, _: Path, __: tuple[int, int]) -> Masks:
    """In an environment of its own: it downloads what it lacks."""
    utils = pytest.importorskip("ultralytics.data.utils")
    data = utils.check_det_dataset(str(folder / "data.yaml"), autodownload=False)
    images = [str(path) for path in Path(data["train"]).iterdir()]
    found: dict[tuple[str, str], Mask] = {}
    for image, labels in zip(images, utils.img2label_paths(images), strict=True):
        _, rows, size_hw, shares, *_, corrupt, message = utils.verify_image_label(
            (image, labels, "", False, len(data["names"]), 0, 0, False)
        )
        assert not corrupt, message
        for row, share in zip(rows, shares, strict=False):  # an empty image has none
            points = (share * np.array(size_hw[::-1])).reshape(1, -1)
            key = Path(image).stem, data["names"][int(row[0])]
            found[key] = utils.polygon2mask(size_hw, points) > 0
    return found


def pillow_yolo(folder: Path, _: Path, size_hw: tuple[int, int]) -> Masks:
    data = yaml.safe_load((folder / "data.yaml").read_text())
    found: dict[tuple[str, str], Mask] = {}
    for image in (folder / data["train"]).iterdir():
        for line in (folder / "labels" / f"{image.stem}.txt").read_text().splitlines():
            number, *rest = line.split(" ")
            shares = np.array(rest, float).reshape(-1, 2)
            assert len(shares) >= 3 and shares.min() >= 0 and shares.max() <= 1
            key = image.stem, data["names"][int(number)]
            assert key not in found  # one line for one object
            found[key] = _filled(shares * size_hw[::-1], size_hw)
    return found


def _filled(points: np.ndarray, size_hw: tuple[int, int]) -> Mask:
    drawn = Image.new("1", size_hw[::-1])
    xy = [(int(x), int(y)) for x, y in points]
    ImageDraw.Draw(drawn).polygon(xy, fill=1, outline=1)
    return np.asarray(drawn)


def labelme(folder: Path, _: Path, size_hw: tuple[int, int]) -> Masks:
    label_file = pytest.importorskip("labelme._label_file", exc_type=ImportError)
    from labelme.utils.shape import shapes_to_label

    found: dict[tuple[str, str], Mask] = {}
    for file in folder.glob("*.json"):
        data = label_file.read_label_file(str(file))  # opens the image, too
        for label in {shape["label"] for shape in data.shapes}:
            shapes = [shape for shape in data.shapes if shape["label"] == label]
            _, instances = shapes_to_label(size_hw, shapes, {label: 1})
            assert instances.max() == 1  # all parts are one object
            found[file.stem, label] = instances == 1
    return found


def supervision_labelme(folder: Path, images: Path, _: tuple[int, int]) -> Masks:
    supervision = pytest.importorskip("supervision")
    return _detections(
        supervision.DetectionDataset.from_labelme(str(images), str(folder), force_masks=True)
    )


def pillow_labelme(folder: Path, _: Path, size_hw: tuple[int, int]) -> Masks:
    found: dict[tuple[str, str], Mask] = {}
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text())
        with Image.open(folder / data["imagePath"]) as image:
            assert image.size == (data["imageWidth"], data["imageHeight"]) == size_hw[::-1]
        for shape in data["shapes"]:
            if shape["shape_type"] == "polygon":
                mask = _filled(np.array(shape["points"]), size_hw)
            else:
                (x_0, y_0), (x_1, y_1) = shape["points"]
                with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as drawn:
                    mask = np.zeros(size_hw, bool)
                    mask[y_0 : y_1 + 1, x_0 : x_1 + 1] = np.asarray(drawn)
            _or(found, (file.stem, shape["label"]), mask)
    return found


def datumaro(folder: Path, images: Path, size_hw: tuple[int, int]) -> Masks:
    """In an environment of its own: it asks for older packages than constraints.txt has."""
    module = pytest.importorskip("datumaro")
    from datumaro.util.mask_tools import rles_to_mask

    (folder / "images").symlink_to(images.resolve())
    dataset = module.Dataset.import_from(str(folder), "cvat")
    names = dataset.categories()[module.AnnotationType.label].items
    found: dict[tuple[str, str], Mask] = {}
    for item in dataset:
        for each in item.annotations:
            if each.type == module.AnnotationType.mask:
                mask = np.asarray(each.image, bool)
            else:
                mask = rles_to_mask([each.points], size_hw[1], size_hw[0]).astype(bool)
            _or(found, (Path(item.id).stem, names[each.label].name), mask)
    return found


def cvat_sdk(folder: Path, _: Path, size_hw: tuple[int, int]) -> Masks:
    """Masks by cvat-sdk, polygons as CVAT's server draws them, by pycocotools."""
    import pycocotools.mask as coco
    from cvat_sdk.masks import decode_mask

    height, width = size_hw
    found: dict[tuple[str, str], Mask] = {}
    for image in ElementTree.parse(folder / "annotations.xml").iter("image"):
        assert (image.get("width"), image.get("height")) == (str(width), str(height))
        for shape in image:
            if shape.tag == "mask":
                runs = [int(run) for run in shape.get("rle", "").split(",")]
                left, top, wide, high = (
                    int(shape.get(key, "")) for key in ("left", "top", "width", "height")
                )
                points = [*runs, left, top, left + wide - 1, top + high - 1]
                mask = decode_mask(points, image_width=width, image_height=height)
            else:
                pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
                ring = [float(number) for pair in pairs for number in pair]
                mask = coco.decode(coco.frPyObjects([ring], height, width)[0]).astype(bool)
            _or(found, (Path(image.get("name", "")).stem, shape.get("label", "")), mask)
    return found


def label_studio(folder: Path, _: Path, size_hw: tuple[int, int]) -> Masks:
    """Brush masks by label-studio-sdk; polygons by its export to COCO."""
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter import brush
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    config = LabelInterface((folder / "label_config.xml").read_text())
    config.validate()
    found: dict[tuple[str, str], Mask] = {}
    for task in json.loads((folder / "tasks.json").read_text()):
        [prediction] = task["predictions"]
        value = PredictionValue(**prediction)
        assert config.validate_prediction(value.model_dump(), return_errors=True) == []
        for region in prediction["result"]:
            kind, own = region["type"], region["value"]
            if kind == "brushlabels":
                mask = brush.decode_rle(own["rle"]).reshape(*size_hw, 4)[..., 3] > 0
            else:
                import pycocotools.mask as coco

                points = np.array(own["points"]) / 100 * size_hw[::-1]
                mask = coco.decode(coco.frPyObjects([points.ravel().tolist()], *size_hw)[0]) > 0
            _or(found, (Path(task["data"]["image"]).stem, own[kind][0]), mask)
    return found


def pillow_png(folder: Path, _: Path, __: tuple[int, int]) -> Masks:
    names = (folder / "classes.txt").read_text().splitlines()
    found: dict[tuple[str, str], Mask] = {}
    for file in (folder / "masks").iterdir():
        with Image.open(file) as image:
            numbers = np.asarray(image)
        for number in np.unique(numbers[numbers > 0]):
            found[file.stem, names[number]] = numbers == number
    return found


READERS: Mapping[DatasetFormatName, list[Reader]] = {
    "coco": [pycocotools, supervision_coco],
    "yolo": [pillow_yolo, supervision_yolo, ultralytics_yolo],
    "labelme": [pillow_labelme, labelme, supervision_labelme],
    "cvat": [cvat_sdk, datumaro],
    "label-studio": [label_studio],
    "png": [pillow_png],
}
