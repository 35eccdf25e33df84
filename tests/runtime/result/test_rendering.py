import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from rism.runtime import Segmenter
from rism.runtime.errors import InputError
from rism.runtime.result.labels import draw_labels, label_text
from rism.runtime.result.rendering import (
    COLOURS_RGB,
    KINDS,
    contrasting,
    cutout,
    encode_png,
    outline,
    overlay,
    render,
)
from rism.runtime.result.segmentation import Segmentation


@pytest.fixture
def result(tiny_bundle: Path, colours: np.ndarray) -> Segmentation:
    return Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, "green")


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mask", (96, 160)),
        ("overlay", (96, 160, 3)),
        ("cutout", (96, 160, 4)),
        ("heatmap", (96 + 36, 160, 3)),  # with its scale
    ],
)
def test_every_kind_has_the_images_size(
    result: Segmentation, colours: np.ndarray, kind: str, shape: tuple[int, ...]
) -> None:
    drawn = render(result, colours, kind)
    assert drawn.shape == shape
    assert drawn.dtype == np.uint8
    if kind == "mask":
        assert np.array_equal(drawn, result.mask_hw * np.uint8(255))
        assert len(encode_png(drawn)) < 600
    with Image.open(io.BytesIO(encode_png(drawn))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), drawn)


def with_mask(result: Segmentation, rows: slice, columns: slice, **changes: Any) -> Segmentation:
    mask = np.zeros((96, 160), bool)
    mask[rows, columns] = True
    return replace(result, mask_hw=mask, **changes)


@pytest.mark.parametrize("ground", [0, 255, 128, (255, 45, 85)])
def test_a_mask_stands_out_on_any_ground(
    result: Segmentation, ground: int | tuple[int, ...]
) -> None:
    image = np.empty((96, 160, 3), np.uint8)
    image[...] = ground
    before = image.copy()
    drawn = overlay(image, [with_mask(result, slice(40, 80), slice(40, 90))], labels=False)
    assert np.array_equal(image, before)
    (tint,) = contrasting(image, [np.ones((96, 160), bool)])
    # From outside: dark, light, the colour; then the tint to the middle.
    assert [drawn[row, 60].tolist() for row in (38, 39, 40, 41)] == [
        [0] * 3, [255] * 3, list(tint), list(tint),
    ]  # fmt: skip
    assert np.abs(drawn[60, 60].astype(int) - image[60, 60]).max() > 30
    far = np.ones((96, 160), bool)
    far[38:82, 38:92] = False
    assert np.array_equal(drawn[far], image[far])


def test_colours_differ_from_what_is_under_them_and_from_each_other() -> None:
    for own in COLOURS_RGB:
        image = np.full((20, 20, 3), own, np.uint8)
        chosen = contrasting(image, [np.ones((20, 20), bool)] * len(COLOURS_RGB))
        assert sorted(chosen) == sorted(COLOURS_RGB)  # each once
        assert chosen[-1] == own  # what is under it comes last
        assert len(contrasting(image, [np.zeros((20, 20), bool)] * 9)) == 9


def test_labels_say_what_and_how_sure(result: Segmentation) -> None:
    found = replace(result, expression="the van", confidence=0.984)
    assert label_text(found, 1) == "the van 0.98"
    assert label_text(replace(found, confidence=None), 1) == "the van"
    assert label_text(replace(found, confidence=0.1), 1) == "the van 0.10 doubtful"
    assert label_text(replace(found, reason="no"), 1) == "the van: not found"
    assert label_text(replace(found, expression="\u7eff\u8272\u7684\u8f66"), 3) == "#3 0.98"


def test_labels_do_not_cover_each_other() -> None:
    image = np.full((300, 400, 3), 90, np.uint8)
    red, blue = (200, 0, 0), (0, 0, 200)
    boxes = [(50, 60, 90, 90)] * 2 + [None]
    draw_labels(image, [("one", red, boxes[0]), ("two", blue, boxes[1]), ("x: no", red, boxes[2])])
    places = [np.argwhere((image == colour).all(axis=2)) for colour in (red, blue)]
    above, below = places[0][places[0][:, 0] < 200], places[1]
    assert above[:, 0].max() < 60 and above[:, 1].min() >= 50  # above its box
    assert below[:, 0].min() > 90  # below it, as there is one above
    assert places[0][:, 0].max() > 280  # at the bottom: it has no box
    long = np.zeros((60, 200, 3), np.uint8)
    draw_labels(long, [("a very long expression " * 9 + "0.98", red, (0, 40, 9, 60))])
    assert long.any()  # shortened, and there
    small = np.zeros((20, 20, 3), np.uint8)
    draw_labels(small, [("the van", red, (0, 0, 20, 20))])
    assert not small.any()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 900), (450, 600)])
def test_the_outline_is_what_pillows_filters_draw(size_hw: tuple[int, int]) -> None:
    mask = np.zeros(size_hw, bool)
    mask[size_hw[0] // 3 : -size_hw[0] // 4, : size_hw[1] // 2] = True
    mask[-1, -1] = True
    drawn = np.full((*size_hw, 3), 7, np.uint8)
    outline(drawn, mask, (1, 2, 3))
    image, by = Image.fromarray(mask.astype(np.uint8) * 255), max(1, round(min(size_hw) / 300))
    light, dark = (
        np.asarray(image.filter(ImageFilter.MaxFilter(2 * each * by + 1))) > 0 for each in (1, 2)
    )
    deep = np.asarray(image.filter(ImageFilter.MinFilter(4 * by + 1))) > 0
    expected = np.full((*size_hw, 3), 7, np.uint8)
    expected[dark & ~light], expected[light & ~mask] = 0, 255
    expected[mask & ~deep] = (1, 2, 3)
    assert np.array_equal(drawn, expected)


def test_a_cutout_does_not_carry_the_background(colours: np.ndarray) -> None:
    mask = np.zeros((96, 160), bool)
    mask[20:60, 40:90] = True
    drawn = cutout(colours, mask)
    assert np.array_equal(drawn[mask][:, :3], colours[mask])
    assert (drawn[mask][:, 3] == 255).all()
    assert (drawn[~mask] == 0).all()


def test_the_heat_map_is_hottest_where_the_object_is(
    result: Segmentation, colours: np.ndarray
) -> None:
    drawn = render(result, colours, "heatmap").astype(int)
    assert drawn[48, 80].sum() > drawn[48, 8].sum() + 200
    bar = drawn[96 + 8, 10:-10].sum(axis=1)
    assert bar[-1] > bar[0] + 300 and (np.diff(bar) >= -3).all()  # 0 at the left, 1 at the right
    assert (drawn[96 + 20 :] == 0).any()  # numbers


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (700, 3)])
def test_odd_sizes(result: Segmentation, size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    mask = rng.random(size_hw) < 0.5
    plan = replace(
        result.plan, size_wh=size_hw[::-1], resized_wh=(160, 96), crop_xyxy=(0, 0, 160, 96)
    )
    for kind in KINDS:
        drawn = render(replace(result, mask_hw=mask, plan=plan), image, kind)
        assert drawn.shape[1] == size_hw[1]
        assert drawn.shape[0] == size_hw[0] or kind == "heatmap"


def test_another_image_is_refused(result: Segmentation, colours: np.ndarray) -> None:
    with pytest.raises(InputError, match="159 x 96 pixels, the result 160 x 96: pass the image"):
        render(result, colours[:, 1:], "overlay")
