"""cvat-sdk's own driver runs the function; only CVAT's server is not there."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from PIL import Image, ImageDraw

from rism.integrations.cvat import CvatFunction, create, parse_expressions
from rism.runtime.errors import InputError
from rism.runtime.segmenter import Segmenter

Annotate = Callable[..., list[models.LabeledShapeRequest]]


@pytest.fixture(scope="module")
def function(tiny_master: Path) -> CvatFunction:
    return create("leaf: green; poppy: the red", bundle=str(tiny_master), provider="cpu")


@pytest.fixture
def annotate(colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Annotate:
    """Annotate a task with one image, and return what is uploaded."""
    labels = [
        models.Label(name=name, id=number, type="any", attributes=[], sublabels=[])
        for name, number in (("leaf", 70), ("poppy", 71))
    ]
    media = SimpleNamespace(load_image=lambda: Image.fromarray(colours))
    sample = SimpleNamespace(frame_name="a.png", frame_index=5, media=media)
    task = SimpleNamespace(labels=labels, samples=[sample])
    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: task)
    sent: list[Any] = []
    api = SimpleNamespace(partial_update_annotations=lambda *_, **sends: sent.append(sends))
    client = SimpleNamespace(logger=logging.getLogger(), tasks=SimpleNamespace(api=api))

    def run(function: CvatFunction, **options: Any) -> list[models.LabeledShapeRequest]:
        cvataa.annotate_task(client, 1, function, **options)
        [request] = sent
        return list(request["patched_labeled_data_request"].shapes)

    return run


@pytest.fixture
def masks(tiny_master: Path, colours: np.ndarray) -> list[np.ndarray]:
    segmenter = Segmenter.from_bundle(tiny_master, provider="cpu")
    return [result.mask for result in segmenter.segment(colours, ["green", "the red"])]


def test_masks(function: CvatFunction, annotate: Annotate, masks: list[np.ndarray]) -> None:
    shapes = annotate(function)
    assert [(each.label_id, each.frame, each.type.value) for each in shapes] == [
        (70, 5, "mask"), (71, 5, "mask"),
    ]  # fmt: skip
    for shape, mask in zip(shapes, masks, strict=True):
        height, width = mask.shape
        decoded = decode_mask(shape.points, image_width=width, image_height=height)
        assert np.array_equal(decoded, mask)


def test_polygons(function: CvatFunction, annotate: Annotate, masks: list[np.ndarray]) -> None:
    shapes = annotate(function, conv_mask_to_poly=True)
    for label, mask in zip((70, 71), masks, strict=True):
        drawn = Image.new("1", mask.shape[::-1])
        for shape in (each for each in shapes if each.label_id == label):
            assert shape.type.value == "polygon"
            points = np.array(shape.points).reshape(-1, 2) - 0.5
            ImageDraw.Draw(drawn).polygon([(x, y) for x, y in points], fill=1)
        found = np.asarray(drawn)
        assert (found & mask).sum() / (found | mask).sum() > 0.9


def test_a_threshold_without_a_rule(function: CvatFunction, annotate: Annotate) -> None:
    with pytest.raises(InputError, match="confidence was never fitted"):
        annotate(function, conf_threshold=0.5)


def test_the_demonstrator_with_a_threshold(annotate: Annotate) -> None:
    assert annotate(create("leaf: the green leaf; poppy"), conf_threshold=1.0) == []


@pytest.mark.parametrize("text", ["", " ; ", "a: b; a: c", ": b"])
def test_expressions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="expected 'LABEL: EXPRESSION"):
        parse_expressions(text)


def test_labels_and_expressions() -> None:
    found = parse_expressions("van: the van at 12:30; the red car;")
    assert found == {"van": "the van at 12:30", "the red car": "the red car"}
