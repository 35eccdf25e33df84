import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rism.runtime.bundle.manifest import Geometry
from rism.runtime.errors import InputError
from rism.runtime.image import geometry
from rism.runtime.method.upsampling import upsample
from tests.conftest import tiny_manifest

STRETCH = Geometry(**tiny_manifest({})["geometry"])
CROP = replace(
    STRETCH, size_level=1024, resize="shrink", remainder="crop", multiple_px=16, token_px=16
)


def test_stretch_rounds_down_to_the_multiple() -> None:
    plan = geometry.plan((640, 480), STRETCH)
    assert plan.resized_wh == (144, 104)  # 147.8 x 110.9
    assert plan.crop_xyxy == (0, 0, 144, 104)
    assert plan.grid_hw == (13, 18)


def test_a_square_keeps_all_of_its_tokens() -> None:
    for side in range(1, 3000):
        assert geometry.plan((side, side), STRETCH).grid_hw == (16, 16), side


CEIL = replace(
    STRETCH, size_level=512, multiple_px=16, token_px=16, rounding="ceil", resample="bilinear",
    resize_in="float32",
)  # fmt: skip


@pytest.mark.parametrize(
    ("size_wh", "resized_wh"),
    [
        ((640, 480), (592, 432)),  # 591.2 and 444 become 592 and 444
        ((480, 640), (432, 592)),
        ((512, 512), (512, 512)),
        ((1, 1), (512, 512)),
        ((800, 100), (1440, 176)),  # 1448.2 and 181.1 become 1449 and 182
        ((100, 800), (176, 1440)),
    ],
)
def test_rounding_up_before_down(size_wh: tuple[int, int], resized_wh: tuple[int, int]) -> None:
    plan = geometry.plan(size_wh, CEIL)
    assert plan.resized_wh == resized_wh
    assert plan.crop_xyxy == (0, 0, *resized_wh)
    assert plan.grid_hw == (resized_wh[1] // 16, resized_wh[0] // 16)
    rules = replace(CEIL, size_level=16, max_aspect=1000.0)
    assert geometry.plan((900, 1), rules).resized_wh == (480, 16)  # one multiple at least


@pytest.mark.parametrize("size_wh", [(640, 480), (333, 700), (90, 80), (1500, 1500)])
def test_resizing_without_8_bits_is_torchs(size_wh: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(2).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)
    plan = geometry.plan(size_wh, CEIL)
    found = geometry.normalise(geometry.resize(image, plan, CEIL), plan, CEIL)
    given = torch.from_numpy(image).permute(2, 0, 1)[None]
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 2e-4)):
        # In single precision torch rounds the places of its taps, too: a hundredth of a level.
        wanted = torch.nn.functional.interpolate(
            given.to(dtype) / 255, plan.resized_wh[::-1], mode="bilinear", antialias=True
        )
        np.testing.assert_allclose(found, wanted * 2 - 1, atol=limit, rtol=0)
    assert found.dtype == np.float32
    in_8_bits = geometry.resize(image, plan, replace(CEIL, resize_in="uint8"))
    rounded = geometry.normalise(in_8_bits, plan, CEIL)
    assert 1e-3 < np.abs(found - rounded).max() < 1.1 / 127.5


def test_crop_takes_the_centre() -> None:
    plan = geometry.plan((1000, 701), CROP)
    assert plan.resized_wh == (1000, 701)
    assert plan.crop_xyxy == (4, 6, 996, 694)
    assert plan.grid_hw == (43, 62)


def test_tiny_images() -> None:
    assert geometry.plan((1, 1), STRETCH).grid_hw == (16, 16)
    assert geometry.plan((1, 1), replace(STRETCH, resize="shrink")).grid_hw == (1, 1)
    with pytest.raises(InputError, match="15 x 40 pixels, too small for this model, expected at"):
        geometry.plan((15, 40), CROP)


def test_long_images() -> None:
    with pytest.raises(InputError) as error:
        geometry.plan((3000, 20), STRETCH)
    assert str(error.value) == (
        "the image is 3000 x 20 pixels (aspect 150.0), expected at most 8: "
        "crop it around the object first"
    )


def test_more_tokens_than_noise() -> None:
    with pytest.raises(InputError, match=r"makes 16 x 16 tokens, expected at most 255 \(the bun"):
        geometry.plan((64, 64), STRETCH, max_tokens=255)
    assert geometry.plan((64, 64), STRETCH, max_tokens=256).tokens == 256


def test_resizing_is_pillows_and_normalised() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    plan = geometry.plan((70, 50), STRETCH)
    resized = Image.fromarray(image).resize(plan.resized_wh, Image.Resampling.LANCZOS)
    expected = (np.asarray(resized).transpose(2, 0, 1)[None] / 255.0 - 0.5) / 0.5
    found = geometry.normalise(geometry.resize(image, plan, STRETCH), plan, STRETCH)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size_wh", "chosen"),
    [
        ((640, 480), (1152, 896)),  # 1.333 lies between 1.286 and 1.5
        ((480, 640), (896, 1152)),
        ((1000, 1000), (1024, 1024)),  # of equal ratios the larger
        ((3, 3), (1024, 1024)),
        ((800, 100), (1536, 640)),
        ((3000, 2000), (1536, 1024)),
        ((2, 1), (1216, 704)),
    ],
)
def test_fixed_sizes_are_chosen_by_aspect(
    size_wh: tuple[int, int], chosen: tuple[int, int]
) -> None:
    sizes = (
        (512, 512), (1024, 1024), (1152, 896), (896, 1152), (768, 512), (1536, 1024),
        (1216, 704), (1536, 640),
    )  # fmt: skip
    for rules in (STRETCH, CROP):
        plan = geometry.plan(size_wh, replace(rules, multiple_px=16, token_px=16, sizes=sizes))
        assert plan.resized_wh == chosen
        assert plan.crop_xyxy == (0, 0, *chosen)
        assert plan.grid_hw == (chosen[1] // 16, chosen[0] // 16)


def test_ties_between_fixed_sizes() -> None:
    """As far to one side as to the other: the larger area, then the first listed."""
    tall, wide, large = (512, 768), (768, 512), (1024, 1536)
    for sizes in ((tall, wide), (wide, tall)):
        assert geometry.plan((99, 99), replace(STRETCH, sizes=sizes)).resized_wh == sizes[0]
    for sizes in ((wide, large), (large, wide), (tall, large)):
        assert geometry.plan((99, 99), replace(STRETCH, sizes=sizes)).resized_wh == large


def pixelwise(map_hw: np.ndarray, plan: geometry.Plan) -> np.ndarray:
    """Docs/bundle.md, step 7, one pixel at a time in float64."""
    rows, columns = map_hw.shape
    left, top, right, bottom = plan.crop_xyxy
    width, height = plan.size_wh
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            # The cut-out is a rectangle in image pixels; outside of it the edge is repeated.
            x_in = ((x + 0.5) - left * width / plan.resized_wh[0]) / (
                (right - left) * width / plan.resized_wh[0]
            )
            y_in = ((y + 0.5) - top * height / plan.resized_wh[1]) / (
                (bottom - top) * height / plan.resized_wh[1]
            )
            u = min(max(x_in * columns - 0.5, 0.0), columns - 1.0)
            v = min(max(y_in * rows - 0.5, 0.0), rows - 1.0)
            x0, y0 = math.floor(u), math.floor(v)
            x1, y1 = min(x0 + 1, columns - 1), min(y0 + 1, rows - 1)
            fx, fy = u - x0, v - y0
            upper = map_hw[y0, x0] * (1 - fx) + map_hw[y0, x1] * fx
            lower = map_hw[y1, x0] * (1 - fx) + map_hw[y1, x1] * fx
            out[y, x] = upper * (1 - fy) + lower * fy
    return out


@pytest.mark.parametrize("rules", [STRETCH, replace(CROP, size_level=48)], ids=["stretch", "crop"])
@pytest.mark.parametrize("size_wh", [(77, 50), (50, 77), (64, 64), (33, 130), (200, 31)])
def test_upsample_against_a_loop(rules: Geometry, size_wh: tuple[int, int]) -> None:
    plan = geometry.plan(size_wh, rules)
    map_hw = np.random.default_rng(4).standard_normal(plan.grid_hw, dtype=np.float32)
    found = upsample(map_hw, plan)
    assert found.shape == (size_wh[1], size_wh[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pixelwise(map_hw, plan), atol=1e-5)


def test_cut_off_border_takes_the_nearest_value() -> None:
    plan = geometry.plan((50, 40), CROP)
    assert plan.crop_xyxy == (1, 4, 49, 36)
    map_hw = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = upsample(map_hw, plan)
    assert (found[:4, 0] == 0).all()
    assert (found[-4:, -1] == 5).all()


def test_positions_are_row_and_column() -> None:
    assert geometry.positions((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
