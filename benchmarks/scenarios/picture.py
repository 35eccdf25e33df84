"""Whole pictures with the built-in model: against PyTorch, and several expressions on one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.checks import same_masks
from benchmarks.harness.measure import by_turns, host_peak
from benchmarks.harness.rows import EXAMPLE, Job, Row, bundle_folder, timed
from rism.runtime import Segmenter, load_image

__all__ = ["measure_expressions", "measure_picture"]

PYTORCH, OURS, DEFAULT = "literal, PyTorch", "rism", "rism, its defaults"
TOGETHER, ONE_BY_ONE, AFRESH = "together", "one by one", "one by one, the picture encoded anew"
_COLOURS = ("green", "red", "blue", "yellow", "white", "black", "grey", "brown")
_THINGS = ("van", "car", "house", "tree", "cup", "dog", "lamp", "door")
# Weights are stored in 16 bits; a token at the boundary may fall on either side.
_TOLERANCE = 5e-3


def measure_picture(job: Job) -> list[Row]:
    """Measure the whole of a picture and an expression that were not seen before."""
    from benchmarks.baselines.pytorch_pipeline import CHECKPOINT, PytorchPipeline

    given, expression = job.get("checkpoint", str), job.get("expression", str)
    literal = PytorchPipeline(CHECKPOINT if given == "mini" else Path(given))
    segmenter = Segmenter.from_bundle(bundle_folder(job.get("bundle", str)), provider="cpu")
    # Both start at the file's pixels; a changed one is a picture that nothing remembers.
    pixels, fresh = load_image(EXAMPLE).copy(), itertools.count(1)
    texts = (f"{expression} {number}" for number in itertools.count())
    timings_ms: list[dict[str, float]] = []

    def new() -> np.ndarray:
        number = next(fresh)
        pixels[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
        return pixels

    def ours() -> None:
        # The same answer: the published one.
        found = segmenter.segment(new(), next(texts), paper=True)
        timings_ms.append(dict(found.timings_ms))

    found = segmenter.segment(pixels, expression, paper=True).mask_hw
    wanted = literal.segment(Image.fromarray(pixels), expression)
    share = same_masks(OURS, found, wanted, _TOLERANCE)
    ways: dict[str, Callable[[], object]] = {
        PYTORCH: lambda: literal.segment(Image.fromarray(new()), next(texts)),
        OURS: ours,
        DEFAULT: lambda: segmenter.segment(new(), next(texts)),
    }
    timings = by_turns(ways, runs=job.runs, warm_up=job.warm_up)
    stages = {
        stage: round(float(np.median([each[stage] for each in timings_ms[-job.runs :]])), 3)
        for stage in timings_ms[-1]
    }
    rows = []
    for name, way in ways.items():
        with host_peak() as peak:
            way()
        # What is beyond the published method is no other way to the same mask.
        notes: dict[str, Any] = {} if name == DEFAULT else {"pixels_that_differ": share}
        if name == OURS:
            notes["stages_ms"] = stages
        rows.append(timed(name, timings[name], host_bytes=peak.nbytes, **notes))
    return rows


def measure_expressions(job: Job) -> Iterator[Row]:
    """Measure N expressions on one picture: in one call, in N, and in N that forget it."""
    bundle = bundle_folder(job.get("bundle", str))
    segmenter = Segmenter.from_bundle(bundle, provider=job.get("provider", str))
    pixels, fresh, texts = load_image(EXAMPLE).copy(), itertools.count(1), _expressions()

    def new() -> np.ndarray:
        number = next(fresh)
        pixels[0, 0] = (number & 255, number >> 8 & 255, number >> 16)
        return pixels

    for count in job.numbers("counts"):

        def some(count: int = count) -> list[str]:
            return [next(texts) for _ in range(count)]

        def together() -> None:
            segmenter.segment(new(), some())

        def one_by_one() -> None:
            image = new()
            for text in some():
                segmenter.segment(image, text)

        def afresh() -> None:
            for text in some():
                segmenter.segment(new(), text)

        asked = some()
        pairs = zip(
            segmenter.segment(pixels, asked),
            [segmenter.segment(pixels, text) for text in asked],
            strict=True,
        )
        for text, (one, other) in zip(asked, pairs, strict=True):
            same_masks(f"{TOGETHER}: {text}", one.mask_hw, other.mask_hw, _TOLERANCE)
        ways = {ONE_BY_ONE: one_by_one, TOGETHER: together, AFRESH: afresh}
        timings = by_turns(ways, runs=job.runs, warm_up=job.warm_up)
        for name, way in ways.items():
            with host_peak() as peak:
                way()
            group = f"{count} expression{'s' * (count > 1)}"
            each_ms = round(timings[name].median / count * 1e3, 3)
            yield timed(name, timings[name], group=group, host_bytes=peak.nbytes, each_ms=each_ms)


def _expressions() -> itertools.chain[str]:
    """Yield expressions without end, none of them twice."""
    return itertools.chain.from_iterable(
        (f"the {colour} {thing} {number}" for colour, thing in itertools.product(_COLOURS, _THINGS))
        for number in itertools.count()
    )
