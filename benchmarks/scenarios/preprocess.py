"""From a decoded image to the VAE's input: ours against the pipeline's own image processor.

Baseline: diffusers' Flux2ImageProcessor, called as Flux2KleinPipeline calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image

from benchmarks.harness.checks import same_values
from benchmarks.harness.rows import EXAMPLE, Row, Task, image_size, time_ways
from rism.runtime import load_image
from rism.runtime.bundle.manifest import Geometry
from rism.runtime.image import geometry

PIPELINE, OURS = "diffusers' image processor", "rism"
# As FLUX.2-klein is published: no larger than a megapixel, cut to whole tokens.
_RULES = Geometry(
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
_TOLERANCE = 1e-6


def measure(task: Task) -> Iterator[Row]:
    """Measure each size of image; each is a group."""
    for size in task["sizes"]:
        yield from _both(task, size)


def _both(task: Task, size: str) -> list[Row]:
    original = Image.open(EXAMPLE).convert("RGB").resize(image_size(size))
    processor = Flux2ImageProcessor()

    def ours() -> npt.NDArray[np.float32]:
        pixels = load_image(original)
        plan = geometry.plan((pixels.shape[1], pixels.shape[0]), _RULES)
        return geometry.to_model(pixels, plan, _RULES)

    def pipeline() -> npt.NDArray[np.float32]:
        processor.check_image_input(original)
        image = original
        if image.width * image.height > 1024 * 1024:
            image = processor._resize_to_target_area(image, 1024 * 1024)
        high, wide = (side // 16 * 16 for side in (image.height, image.width))
        tensor = processor.preprocess(image, height=high, width=wide, resize_mode="crop")
        return np.asarray(tensor.numpy())

    error = same_values(OURS, ours(), pipeline(), _TOLERANCE)
    ways = {PIPELINE: pipeline, OURS: ours}
    return time_ways(task, ways, group=size, error=error)
