"""An image reaches the model exactly as diffusers' FLUX.2-klein pipeline would bring it."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rism.runtime.image import geometry
from tests.runtime.image.test_geometry import CROP

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import Flux2KleinPipeline  # noqa: E402
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor  # noqa: E402

DRAWN = random.Random(7)
SHORT = 1330  # 1330 * (1024 / 1330) is 1023.99..: the pipeline loses a row of tokens, so must we
SIZES = [
    *((DRAWN.randint(64, 1700), DRAWN.randint(213, 1700)) for _ in range(4)),
    *[(side, side) for side in (64, 1023, 1024, 1025, SHORT)],
    *[(1025, 1023), (1024, 1025), (1040, 1008), (2049, 513)],
    *[(2400, 300), (375, 3000), (511, 64), (1333, 1999)],
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
    plan = geometry.plan(size_wh, CROP)
    found = geometry.normalise(geometry.resize(image, plan, CROP), plan, CROP)
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
    sizes = [(drawn.randint(64, 6000), drawn.randint(64, 6000)) for _ in range(5_000)]
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
        plan = geometry.plan((width, height), CROP)
        assert (plan.resized_wh, plan.crop_xyxy) == (image.size, box), (width, height)
    assert shrunk > 2_000
