"""The dataset formats by name."""

from collections.abc import Mapping

from rism.runtime.names import DatasetFormatName
from rism.runtime.result.formats import coco, cvat, index_png, label_studio, labelme, yolo
from rism.runtime.result.formats.annotated import DatasetFormat

FORMATS: Mapping[DatasetFormatName, DatasetFormat] = {
    "coco": coco.FORMAT,
    "yolo": yolo.FORMAT,
    "labelme": labelme.FORMAT,
    "cvat": cvat.FORMAT,
    "label-studio": label_studio.FORMAT,
    "png": index_png.FORMAT,
}
