"""Contours along the image's edges, against the guided filter written out in loops."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from rism.runtime.bundle.manifest import Geometry
from rism.runtime.image.geometry import Plan, plan
from rism.runtime.method import upsampling
from rism.runtime.method.upsampling import REGULARISATION, guided_upsample, noise_level, upsample
from tests.runtime.image.test_geometry import STRETCH
from tests.runtime.method.test_postprocess_cuda import REQUEST

GEOMETRY = replace(STRETCH, size_level=64, max_aspect=1000.0)


def whole(size_wh: tuple[int, int], grid_hw: tuple[int, int]) -> Plan:
    """The image as it is, cut into a grid."""
    resized = (8 * grid_hw[1], 8 * grid_hw[0])
    return Plan(size_wh, resized, (0, 0, *resized), grid_hw)


def noise(size_wh: tuple[int, int], *, seed: int = 0, grey: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 256, (size_wh[1], size_wh[0], 1 if grey else 3), np.uint8)
    return np.broadcast_to(drawn, (*drawn.shape[:2], 3)).copy()


def scores(grid_hw: tuple[int, int], *, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(grid_hw).astype(np.float32)


def literal(coarse_hw: np.ndarray, image_hwc: np.ndarray, radius: int) -> np.ndarray:
    """He, Sun and Tang 2013, section 3.5: a_k = (S_k + eps U)^-1 (cov_k), q_i = a_i I_i + b_i."""
    guide, target = image_hwc / 255.0, coarse_hw.astype(np.float64)
    height, width = target.shape

    def window(row: int, column: int) -> tuple[slice, slice]:
        return (
            slice(max(row - radius, 0), row + radius + 1),
            slice(max(column - radius, 0), column + radius + 1),
        )

    slope, constant = np.empty((height, width, 3)), np.empty((height, width))
    for place in np.ndindex(height, width):
        colours, values = guide[window(*place)].reshape(-1, 3), target[window(*place)].ravel()
        mean = colours.mean(axis=0)
        spread = (colours - mean).T @ (colours - mean) / len(colours)
        together = (colours - mean).T @ (values - values.mean()) / len(colours)
        slope[place] = np.linalg.solve(spread + REGULARISATION * np.eye(3), together)
        constant[place] = values.mean() - slope[place] @ mean
    found = np.empty((height, width))
    for place in np.ndindex(height, width):
        near = window(*place)
        found[place] = slope[near].reshape(-1, 3).mean(axis=0) @ guide[place]
        found[place] += constant[near].mean()
    return found


@pytest.fixture
def one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one token to each side, whatever the noise, and nothing mixed in."""
    monkeypatch.setattr(upsampling, "RADIUS_TOKENS", (1.0, 1.0))
    monkeypatch.setattr(upsampling, "FEW_PX", 0.0)


@pytest.mark.usefixtures("one_token")
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    ("size_wh", "grid_hw", "radius"),
    [((31, 23), (4, 5), 6), ((24, 24), (6, 6), 4), ((40, 9), (2, 8), 5), ((7, 5), (5, 7), 1)],
)
def test_an_image_that_is_not_reduced(
    size_wh: tuple[int, int], grid_hw: tuple[int, int], radius: int, *, grey: bool
) -> None:
    image_hwc, map_hw, drawn = noise(size_wh, grey=grey), scores(grid_hw), whole(size_wh, grid_hw)
    found = guided_upsample(map_hw, image_hwc, drawn)
    expected = literal(upsample(map_hw, drawn), image_hwc, radius)
    assert found.shape == size_wh[::-1] and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.usefixtures("one_token")
def test_edges_of_a_smooth_image() -> None:
    """Little noise on a gradient: where single precision would cancel."""
    y, x = np.indices((30, 36))
    smooth = np.stack([100 + 3 * x, 120 + 2 * y, 230 + 0 * x], axis=-1)
    smooth += np.random.default_rng(4).integers(0, 2, smooth.shape)
    drawn, map_hw = whole((36, 30), (5, 6)), scores((5, 6))
    found = guided_upsample(map_hw, smooth.astype(np.uint8), drawn)
    expected = literal(upsample(map_hw, drawn), smooth, 6)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("deviation", [0.1, 0.3, 0.6])
def test_noise_is_told_from_what_a_map_shows(deviation: float) -> None:
    y, x = np.indices((32, 32))
    clean = np.clip(6 - np.hypot(x - 14, y - 17), -0.5, 0.5).astype(np.float32)
    slanted = clean + np.float32(0.002) * x
    for map_hw in (clean, 7 * clean, slanted):
        assert noise_level(map_hw) == pytest.approx(0, abs=1e-4)
    grain = np.random.default_rng(0).normal(0, deviation, clean.shape).astype(np.float32)
    # The distance of the classes grows with the noise, as noise decides who is in which.
    noisy = clean + grain
    distance = noisy[noisy > 0].mean() - noisy[noisy <= 0].mean()
    assert noise_level(noisy) * distance == pytest.approx(deviation, rel=0.1)
    assert noise_level(3 * noisy) == pytest.approx(noise_level(noisy), rel=1e-5)
    for odd in (noisy[:2], abs(noisy) + 1, -abs(noisy)):
        assert noise_level(odd) == 0


def test_windows_grow_with_the_noise_of_the_map() -> None:
    """Noise that a small window follows is outvoted in a large one."""
    y, x = np.indices((480, 640))
    truth = np.hypot(x - 305, y - 227) < 131
    image_hwc = np.where(truth[..., None], (220, 40, 40), (60, 90, 60)).astype(np.uint8)
    covered = truth.reshape(24, 20, 32, 20).mean(axis=(1, 3))
    grain = np.random.default_rng(3).normal(0, 0.6, covered.shape)
    drawn, map_hw = whole((640, 480), (24, 32)), (covered - 0.5 + grain).astype(np.float32)
    wrong = ((guided_upsample(map_hw, image_hwc, drawn) > 0) != truth).mean()
    assert wrong < 0.04 < ((upsample(map_hw, drawn) > 0) != truth).mean()


def test_an_edge_is_followed_in_a_reduced_image() -> None:
    """A disc of 640 x 480 on 16 x 12 tokens: to the pixel, where bilinear is far off."""
    y, x = np.indices((480, 640))
    truth = np.hypot(x - 305, y - 227) < 131
    image_hwc = np.where(truth[..., None], (220, 40, 40), (60, 90, 60)).astype(np.uint8)
    covered = truth.reshape(12, 40, 16, 40).mean(axis=(1, 3))
    drawn, map_hw = whole((640, 480), (12, 16)), (covered - 0.5).astype(np.float32)
    np.testing.assert_array_equal(guided_upsample(map_hw, image_hwc, drawn) > 0, truth)
    assert ((upsample(map_hw, drawn) > 0) != truth).sum() > 1000


@pytest.mark.parametrize(
    "size_wh",
    [(1, 1), (1, 50), (50, 1), (2, 3), (8, 8), (3, 2000), (2000, 3), (1, 5000), (700, 500)],
)
def test_small_long_and_large_images(size_wh: tuple[int, int]) -> None:
    drawn = plan(size_wh, replace(GEOMETRY, max_aspect=6000.0))
    map_hw = scores(drawn.grid_hw)
    found = guided_upsample(map_hw, noise(size_wh), drawn)
    assert found.shape == size_wh[::-1] and np.isfinite(found).all()
    assert abs(found).max() < 10 * max(1, abs(map_hw).max())
    plain = np.full((*size_wh[::-1], 3), 77, np.uint8)
    found = guided_upsample(abs(map_hw) + 0.1, plain, drawn)
    assert (found > 0.05).all()


@pytest.mark.usefixtures("one_token")
@pytest.mark.parametrize(
    "geometry",
    [
        replace(GEOMETRY, remainder="crop", resize="shrink", multiple_px=16),
        replace(GEOMETRY, sizes=((64, 64), (96, 48))),
        replace(GEOMETRY, rounding="ceil"),
        GEOMETRY,
    ],
    ids=["crop", "fixed", "ceil", "stretch"],
)
@pytest.mark.parametrize("size_wh", [(200, 133), (61, 90)])
def test_every_geometry_keeps_its_places(geometry: Geometry, size_wh: tuple[int, int]) -> None:
    """A bright box is where the map is high, also where the model sees a cut-out only."""
    width, height = size_wh
    image_hwc = np.full((height, width, 3), 40, np.uint8)
    top, left = height // 3, width // 2
    image_hwc[top : height - 9, left : width - 11] = (240, 240, 100)
    truth = image_hwc[..., 0] > 128
    drawn = plan(size_wh, geometry)
    # What the model sees of it, by the nearest pixel of the image.
    (x0, y0, x1, y1), (wide, tall) = drawn.crop_xyxy, drawn.resized_wh
    x = ((np.arange(x0, x1) + 0.5) * width / wide).astype(int)
    y = ((np.arange(y0, y1) + 0.5) * height / tall).astype(int)
    rows, columns = drawn.grid_hw
    covered = truth[y][:, x].reshape(rows, 8, columns, 8).mean(axis=(1, 3))
    map_hw = (covered - 0.5).astype(np.float32)
    part = np.ix_(np.unique(y), np.unique(x))
    found, bilinear = guided_upsample(map_hw, image_hwc, drawn) > 0, upsample(map_hw, drawn) > 0
    wrong, wrong_bilinear = ((each != truth)[part].mean() for each in (found, bilinear))
    assert wrong < wrong_bilinear / 2 and wrong < 0.02


@pytest.mark.parametrize("grid_hw", [(16, 16), (64, 64)])
def test_memory_is_a_few_planes_of_the_image(grid_hw: tuple[int, int]) -> None:
    size_wh = (1600, 1200)
    drawn, image_hwc, map_hw = whole(size_wh, grid_hw), noise(size_wh), scores(grid_hw)
    upsample(map_hw, drawn)  # places are remembered
    tracemalloc.start()
    guided_upsample(map_hw, image_hwc, drawn)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    plane = 4 * size_wh[0] * size_wh[1]
    # One of the image's size, and many of the reduced image's, which is small.
    assert peak < 2.5 * plane


def test_nothing_is_found_where_nothing_is_positive() -> None:
    """Noise of an image is no reason for a mask."""
    drawn, image_hwc = whole((64, 48), (6, 8)), noise((64, 48))
    asked = replace(REQUEST, plan=drawn, guide=image_hwc)
    map_hw = -abs(scores((6, 8)))
    assert not asked.mask(map_hw.ravel()).any()
    assert not asked.mask(np.zeros(48, np.float32)).any()
    map_hw[2:5, 3:6] = 2
    expected = guided_upsample(map_hw, image_hwc, drawn) > 0
    assert expected.any()
    np.testing.assert_array_equal(asked.mask(map_hw.ravel()), expected)


def test_a_token_alone_is_not_lost() -> None:
    """Means over windows drown it where no edge of the image holds it."""
    drawn, image_hwc = whole((64, 48), (6, 8)), np.full((48, 64, 3), 90, np.uint8)
    map_hw = np.full((6, 8), -0.5, np.float32)
    map_hw[2, 3] = 0.4
    asked = replace(REQUEST, plan=drawn, guide=image_hwc)
    assert not (guided_upsample(map_hw, image_hwc, drawn) > 0).any()
    np.testing.assert_array_equal(asked.mask(map_hw.ravel()), upsample(map_hw, drawn) > 0)
    assert asked.mask(map_hw.ravel()).any()
