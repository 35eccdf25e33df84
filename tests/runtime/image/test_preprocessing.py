"""An image reaches the model exactly as diffusers' FLUX.2-klein pipeline would bring it."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.runtime.bundle.manifest import Geometry
from rism.runtime.image import geometry
from rism.runtime.method.upsampling import upsample

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import Flux2KleinPipeline  # noqa: E402
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor  # noqa: E402

RULES = Geometry(
    size_level=1024,
    resize="shrink",
    remainder="crop",
    multiple_px=16,
    token_px=16,
    resample="lanczos",
    max_aspect=8.0,
    mean=0.5,
    std=0.5,
)
DRAWN = random.Random(7)
SHORT = 1330  # 1330 * (1024 / 1330) is 1023.99..: the pipeline loses a row of tokens, so must we
SIZES = [
    *((DRAWN.randint(64, 1700), DRAWN.randint(213, 1700)) for _ in range(45)),
    *[(side, side) for side in (64, 511, 1023, 1024, 1025, 1500, 2047, SHORT)],
    *[(1025, 1023), (1024, 1025), (1040, 1008), (2048, 512), (2049, 513)],
    *[(2400, 300), (300, 2400), (3000, 375), (511, 64), (1333, 1999)],
]


class Prepared(Exception):  # noqa: N818
    """Carries out of the pipeline what it was about to give the VAE."""


@pytest.fixture(scope="module")
def pipeline() -> Flux2KleinPipeline:
    """The published pipeline, without models, stopped where its image is ready."""

    def stop(images: Any, **options: Any) -> Any:
        raise Prepared(images[0])

    made = Flux2KleinPipeline(None, None, None, None, None, is_distilled=True)
    # Past the registry of models, which wants real ones.
    made.__dict__ |= {
        "transformer": SimpleNamespace(config=SimpleNamespace(in_channels=128)),
        "vae": SimpleNamespace(dtype=None),
        "encode_prompt": lambda **_: (torch.zeros(1, 1, 1), None),
        "prepare_latents": lambda **_: (None, None),
        "prepare_image_latents": stop,
    }
    return made


def prepared(pipeline: Flux2KleinPipeline, image: np.ndarray) -> np.ndarray:
    with pytest.raises(Prepared) as stop:
        pipeline(image=Image.fromarray(image), prompt="x")
    found: np.ndarray = stop.value.args[0].numpy()
    return found


@pytest.mark.parametrize("size_wh", SIZES, ids=str)
def test_every_value_is_the_pipelines(
    pipeline: Flux2KleinPipeline, size_wh: tuple[int, int]
) -> None:
    width, height = size_wh
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    plan = geometry.plan(size_wh, RULES)
    found = geometry.to_model(image, plan, RULES)
    wanted = prepared(pipeline, image)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


class Sized:
    """An image of which only the size exists; says what is done to it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def resize(self, size: tuple[int, int], resample: object) -> "Sized":
        return Sized(size)

    def crop(self, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        return box


def test_every_size_is_the_pipelines() -> None:
    """The same decision over many more sizes than could be resized here."""
    processor = Flux2ImageProcessor(vae_scale_factor=16)
    drawn = random.Random(11)
    sizes = [(drawn.randint(64, 6000), drawn.randint(64, 6000)) for _ in range(20_000)]
    sizes += [(side, side) for side in range(1000, 3000)]
    sizes += [(1024 + i, 1024 - i + j) for i in range(-60, 61) for j in range(-2, 3)]
    shrunk = 0
    for width, height in sizes:
        if max(width, height) > 8 * min(width, height):
            continue
        image: Any = Sized((width, height))
        if width * height > 1024 * 1024:
            image = processor._resize_to_target_area(image, 1024 * 1024)
            shrunk += 1
        w, h = (side // 16 * 16 for side in image.size)
        box = processor._resize_and_crop(image, w, h)
        plan = geometry.plan((width, height), RULES)
        assert (plan.resized_wh, plan.crop_xyxy) == (image.size, box), (width, height)
    assert shrunk > 10_000


@pytest.mark.parametrize("size_wh", [(SHORT, SHORT), (1333, 1999), (701, 507), (2400, 300)])
def test_the_answer_comes_back_to_the_images_size(size_wh: tuple[int, int]) -> None:
    """The border that the crop cut off is filled with its nearest value."""
    width, height = size_wh
    plan = geometry.plan(size_wh, RULES)
    rows, columns = plan.grid_hw
    left, top, right, bottom = plan.crop_xyxy
    assert (right - left, bottom - top) != plan.resized_wh
    rng = np.random.default_rng(3)
    map_hw = rng.standard_normal((rows, columns), dtype=np.float32)
    found = upsample(map_hw, plan)
    assert found.shape == (height, width)
    # Pixels whose centre the crop cut off, or that lie before the centre of the first token.
    scale_x, scale_y = plan.resized_wh[0] / width, plan.resized_wh[1] / height
    cut_x = [x for x in range(width) if (x + 0.5) * scale_x < left]
    cut_y = [y for y in range(height) if (y + 0.5) * scale_y >= bottom]
    for x in cut_x:
        np.testing.assert_array_equal(found[:, x], found[:, 0])
    for y in cut_y:
        np.testing.assert_array_equal(found[y], found[-1])
    assert found[0, 0] == map_hw[0, 0] and found[-1, -1] == map_hw[-1, -1]
    # And the middle of a token is where its value is.
    row, column = rows // 2, columns // 2
    x = round((left + (column + 0.5) * 16) / scale_x - 0.5)
    y = round((top + (row + 0.5) * 16) / scale_y - 0.5)
    around = map_hw[row - 1 : row + 2, column - 1 : column + 2]
    assert abs(found[y, x] - map_hw[row, column]) < 0.2 * (around.max() - around.min())
