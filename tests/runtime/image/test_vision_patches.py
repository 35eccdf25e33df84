"""What the text encoder sees, against the processor that it was trained with."""

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.runtime.bundle.prompt_spec import VisionRules
from rism.runtime.errors import BundleError, InputError
from rism.runtime.image import vision_patches
from tests.runtime.vision_language import VISION

RULES = replace(
    VISION,
    min_pixels=256 * 28 * 28,
    max_pixels=400 * 28 * 28,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
SIZES = [
    (592, 432), (432, 592), (512, 512), (560, 448), (1024, 1024), (28, 28), (16, 16), (3, 500),
    (2000, 40), (448, 448), (447, 449), (1, 1), (640, 16), (1300, 700),
]  # fmt: skip


def image(size_wh: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)


def processor(rules: VisionRules) -> Any:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil(
        min_pixels=rules.min_pixels, max_pixels=rules.max_pixels, patch_size=rules.patch_px,
        merge_size=rules.merge, temporal_patch_size=rules.frames, image_mean=list(rules.mean),
        image_std=list(rules.std), resample=Image.Resampling[rules.resample.upper()],
    )  # fmt: skip


def check(pixels: np.ndarray, rules: VisionRules) -> None:
    seen = vision_patches.view(pixels, (pixels.shape[1], pixels.shape[0]), rules)
    wanted = processor(rules)(Image.fromarray(pixels), return_tensors="np")
    assert [1, *seen.grid_hw] == wanted["image_grid_thw"][0].tolist()
    found = vision_patches.pixel_values(seen, rules)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted["pixel_values"])


@pytest.mark.parametrize("size_wh", SIZES)
def test_pixels_are_the_processors_bit_by_bit(size_wh: tuple[int, int]) -> None:
    check(image(size_wh), RULES)


@pytest.mark.parametrize(
    "rules",
    [
        replace(RULES, patch_px=4, merge=1, min_pixels=16, max_pixels=900),
        replace(RULES, patch_px=5, merge=3, frames=1, min_pixels=1, max_pixels=10000),
        replace(RULES, patch_px=2, merge=4, frames=3, resample="lanczos"),
        replace(RULES, resample="bilinear", min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28),
    ],
)
def test_other_patches(rules: VisionRules) -> None:
    for size_wh in ((31, 60), (77, 12), (200, 199)):
        check(image(size_wh), rules)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size_wh", [(592, 432), (880, 1184), (300, 70), (28, 28), (3, 500), (1, 1), (448, 450)]
)
def test_the_other_arithmetic_is_torchs_bit_by_bit(size_wh: tuple[int, int], resample: str) -> None:
    """torchvision resizes a tensor of 8 bits with this function, on a CPU."""
    torch = pytest.importorskip("torch")
    rules = replace(RULES, arithmetic="torchvision", resample=resample)
    for kept in (rules, replace(rules, min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28)):
        pixels = image(size_wh)
        seen = vision_patches.view(pixels, size_wh, kept)
        assert len(seen.digest) == 64
        found = seen.image_hwc
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        wanted = torch.nn.functional.interpolate(
            planes, found.shape[:2], mode=resample, antialias=True
        )
        np.testing.assert_array_equal(found, wanted[0].permute(1, 2, 0).numpy())


def test_a_view_that_fits_is_a_copy() -> None:
    pixels = image((448, 448))
    for arithmetic in ("pillow", "torchvision"):
        seen = vision_patches.view(pixels, (448, 448), replace(RULES, arithmetic=arithmetic))
        assert not np.shares_memory(seen.image_hwc, pixels) and not seen.image_hwc.flags.writeable
        np.testing.assert_array_equal(seen.image_hwc, pixels)


def nearest_multiples(width: int, height: int, cell: int) -> tuple[int, int]:
    """The published rule of the aligning step, in its own words."""
    h, w = max(cell, round(height / cell) * cell), max(cell, round(width / cell) * cell)
    if h * w > 16384 * cell * cell:
        shrink = math.sqrt(height * width / (16384 * cell * cell))
        h, w = (int(side / shrink // cell) * cell for side in (height, width))
    elif h * w < 4 * cell * cell:
        grow = math.sqrt(4 * cell * cell / (height * width))
        h, w = (math.ceil(side * grow / cell) * cell for side in (height, width))
    return w, h


@pytest.mark.parametrize("size_wh", [(592, 432), (30, 30), (41, 55), (14, 42), (1000, 9)])
def test_aligning_is_a_resize_of_its_own(size_wh: tuple[int, int]) -> None:
    rules = replace(RULES, align=True, max_pixels=324 * 28 * 28)
    pixels = image(size_wh)
    between = nearest_multiples(*size_wh, 28)
    twice = np.asarray(Image.fromarray(pixels).resize(between, Image.Resampling.BICUBIC))
    wanted = processor(rules)(Image.fromarray(twice), return_tensors="np")
    seen = vision_patches.view(pixels, size_wh, rules)
    np.testing.assert_array_equal(vision_patches.pixel_values(seen, rules), wanted["pixel_values"])


def test_aligning_has_limits_of_its_own() -> None:
    rules = replace(RULES, align=True, patch_px=1, merge=1, min_pixels=1, max_pixels=2**24)
    for size_wh in ((300, 200), (2, 1), (128, 128), (129, 128), (1, 1)):
        seen = vision_patches.view(image(size_wh), size_wh, rules)
        assert seen.size_wh == nearest_multiples(*size_wh, 1), size_wh
        assert 4 <= seen.size_wh[0] * seen.size_wh[1] <= 16384


def test_the_image_comes_to_the_models_size_first() -> None:
    pixels = image((640, 480))
    first = np.asarray(Image.fromarray(pixels).resize((592, 432), Image.Resampling.LANCZOS))
    seen = vision_patches.view(pixels, (592, 432), RULES)
    np.testing.assert_array_equal(
        seen.image_hwc, vision_patches.view(first, (592, 432), RULES).image_hwc
    )
    assert seen.grid_hw == (30, 42)
    assert vision_patches.merged_grid(seen, RULES) == (15, 21)
    assert seen.size_wh == (588, 420)


@pytest.mark.parametrize("grid_hw", [(32, 42), (2, 2), (4, 10), (2, 40)])
def test_positions_are_in_the_order_of_the_patches(grid_hw: tuple[int, int]) -> None:
    utils = pytest.importorskip("transformers.vision_utils")
    torch = pytest.importorskip("torch")
    wanted = utils.get_vision_position_ids(torch.tensor([[1, *grid_hw]]), 2)
    found = vision_patches.patch_positions(grid_hw, RULES)
    assert found.dtype == np.int64 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted.numpy())


def test_long_images() -> None:
    with pytest.raises(InputError) as error:
        vision_patches.view(image((2010, 10)), (2010, 10), RULES)
    assert str(error.value) == (
        "the image comes to 2010 x 10 pixels for the text encoder, expected one side at most "
        "200 times the other: crop it around the object first"
    )


@pytest.mark.parametrize(
    ("rules", "size_wh"),
    [
        (replace(RULES, patch_px=256, merge=16, min_pixels=2**24), (190, 1)),
        (replace(RULES, patch_px=256, merge=16, align=True), (99, 1)),
        (replace(RULES, frames=16, min_pixels=2**24, max_pixels=2**24), (8, 8)),
    ],
)
def test_odd_rules_make_no_gigantic_arrays(rules: VisionRules, size_wh: tuple[int, int]) -> None:
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"makes a view of \d+ x \d+ pixels, expected at most"):
        vision_patches.view(image(size_wh), size_wh, rules)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
