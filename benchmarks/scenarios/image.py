"""Whole images with the built-in model: against PyTorch, and several expressions on one."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harness.checks import same_masks
from benchmarks.harness.rows import EXAMPLE, Row, Task, time_ways
from rism.runtime import Segmenter, load_image

PYTORCH, OURS, DEFAULT = "literal, PyTorch", "rism", "rism, its defaults"
TOGETHER, ONE_BY_ONE, AFRESH = "together", "one by one", "one by one, the image encoded anew"
_COLOURS = ("green", "red", "blue", "yellow", "white", "black", "grey", "brown")
_THINGS = ("van", "car", "house", "tree", "cup", "dog", "lamp", "door")
# Weights are stored in 16 bits; a token at the boundary may fall on either side.
_TOLERANCE = 5e-3


def fresh_images() -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the example's pixels, (H, W, 3), changed so that no cache knows the image."""
    pixels = load_image(EXAMPLE).copy()
    for number in itertools.count():
        pixels[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
        yield pixels


def unseen_expressions() -> Iterator[str]:
    """Yield expressions without end, none of them twice."""
    for number in itertools.count():
        for colour, thing in itertools.product(_COLOURS, _THINGS):
            yield f"the {colour} {thing} {number}"


def measure_image(task: Task) -> list[Row]:
    """Measure an image and an expression that were not seen before, from pixels to a mask."""
    from benchmarks.baselines.pytorch_pipeline import PytorchPipeline

    expression = "the green van"
    pipeline = PytorchPipeline()
    segmenter = Segmenter.from_bundle(provider="cpu")
    images = fresh_images()
    texts = (f"{expression} {number}" for number in itertools.count())
    timings_ms: list[dict[str, float]] = []

    def ours() -> None:
        # With the published method, whose mask is the baseline's.
        found = segmenter.segment(next(images), next(texts), paper=True)
        timings_ms.append(dict(found.timings_ms))

    pixels = next(images)
    found = segmenter.segment(pixels, expression, paper=True).mask_hw
    wanted = pipeline.segment(Image.fromarray(pixels), expression)
    share = same_masks(OURS, found, wanted, _TOLERANCE)
    ways: dict[str, Callable[[], object]] = {
        PYTORCH: lambda: pipeline.segment(Image.fromarray(next(images)), next(texts)),
        OURS: ours,
        DEFAULT: lambda: segmenter.segment(next(images), next(texts)),
    }
    stages: dict[str, float] = {}
    compared = {"pixels_that_differ": share}
    rows = time_ways(task, ways, notes={PYTORCH: compared, OURS: compared | {"stages_ms": stages}})
    for stage in timings_ms[-1]:
        last = [each[stage] for each in timings_ms[-task.runs :]]
        stages[stage] = round(float(np.median(last)), 3)
    return rows


def measure_expressions(task: Task) -> Iterator[Row]:
    """Measure N expressions on one image: in one call, in N, and in N without its features."""
    segmenter = Segmenter.from_bundle(provider="cpu")
    images, texts = fresh_images(), unseen_expressions()
    for count in task["counts"]:

        def some(count: int = count) -> list[str]:
            return [next(texts) for _ in range(count)]

        def together() -> None:
            segmenter.segment(next(images), some())

        def one_by_one() -> None:
            image = next(images)
            for text in some():
                segmenter.segment(image, text)

        def afresh() -> None:
            for text in some():
                segmenter.segment(next(images), text)

        pixels, asked = next(images), some()
        for text, one in zip(asked, segmenter.segment(pixels, asked), strict=True):
            other = segmenter.segment(pixels, text)
            same_masks(f"{TOGETHER}: {text}", one.mask_hw, other.mask_hw, _TOLERANCE)
        ways = {ONE_BY_ONE: one_by_one, TOGETHER: together, AFRESH: afresh}
        group = f"{count} expression{'s' * (count > 1)}"
        for row in time_ways(task, ways, group=group):
            row.notes["each_ms"] = round(float(np.median(row.values)) / count * 1e3, 3)
            yield row
