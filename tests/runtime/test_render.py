import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from rism.runtime import Segmenter
from rism.runtime.errors import InputError
from rism.runtime.render import (
    _PALETTE,
    KINDS,
    TINT_RGB,
    _outline,
    cutout,
    encode_png,
    overlay,
    render,
)
from rism.runtime.result import Segmentation


@pytest.fixture
def result(tiny_bundle: Path, colours: np.ndarray) -> Segmentation:
    return Segmenter.from_bundle(tiny_bundle, provider="cpu").segment(colours, "green")


@pytest.mark.parametrize(
    ("kind", "channels"), [("mask", ()), ("overlay", (3,)), ("cutout", (4,)), ("heatmap", (3,))]
)
def test_every_kind_has_the_pictures_size(
    result: Segmentation, colours: np.ndarray, kind: str, channels: tuple[int, ...]
) -> None:
    drawn = render(result, colours, kind)
    assert drawn.shape == (96, 160, *channels)
    assert drawn.dtype == np.uint8
    with Image.open(io.BytesIO(encode_png(drawn))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), drawn)


def test_the_mask_is_black_and_white(result: Segmentation, colours: np.ndarray) -> None:
    drawn = render(result, colours, "mask")
    assert set(np.unique(drawn)) == {0, 255}
    assert np.array_equal(drawn == 255, result.mask_hw)
    assert len(encode_png(drawn)) < 600


def test_the_overlay_changes_only_the_mask_and_its_rim(colours: np.ndarray) -> None:
    mask = np.zeros((96, 160), bool)
    mask[20:60, 40:90] = True
    before = colours.copy()
    drawn = overlay(colours, mask)
    assert np.array_equal(colours, before)
    assert (drawn[20, 50] == TINT_RGB).all()
    assert (drawn[19, 50] == 255).all()
    far = np.ones_like(mask)
    far[19:61, 39:91] = False
    assert np.array_equal(drawn[far], colours[far])
    assert (drawn[30:50, 50:80] != colours[30:50, 50:80]).any(axis=2).all()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 900), (450, 600), (903, 907)])
def test_the_outline_is_what_pillows_filters_draw(size_hw: tuple[int, int]) -> None:
    mask = np.zeros(size_hw, bool)
    mask[size_hw[0] // 3 : -size_hw[0] // 4, : size_hw[1] // 2] = True
    mask[-1, -1] = True
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    side = 2 * max(1, round(min(size_hw) / 300)) + 1
    wide, thin = (
        image.filter(kind(side)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    assert np.array_equal(_outline(mask), np.asarray(wide) > np.asarray(thin))


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


def test_the_palette_rises_in_lightness() -> None:
    lightness = _PALETTE @ np.array([0.2126, 0.7152, 0.0722])
    assert _PALETTE.shape == (256, 3)
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (700, 3)])
def test_odd_sizes(result: Segmentation, size_hw: tuple[int, int], kind: str) -> None:
    from dataclasses import replace

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    mask = rng.random(size_hw) < 0.5
    plan = replace(
        result.plan, size_wh=size_hw[::-1], resized_wh=(160, 96), crop_xyxy=(0, 0, 160, 96)
    )
    drawn = render(replace(result, mask_hw=mask, plan=plan), picture, kind)
    assert drawn.shape[:2] == size_hw


def test_another_picture_is_refused(result: Segmentation, colours: np.ndarray) -> None:
    with pytest.raises(InputError, match="159 x 96 pixels, the result 160 x 96: pass the picture"):
        render(result, colours[:, 1:], "overlay")
