"""The text that the tokenizer of `mini` is trained on."""

from collections.abc import Iterator

import numpy as np

from rism.evaluation.scenes.expressions import make_expressions
from rism.evaluation.scenes.judged import training_scene

EVERYDAY = (
    "a an and any at away back background behind below beside between big bigger biggest black "
    "bottom brown centre center colour color corner dark edge far first front from gray grey half "
    "in is it large larger largest last leave left light little lower middle near nearest next "
    "object of on one only other out over person picture please remove right second shape side "
    "single small smaller smallest that the thing this tiny to top two under up upper white with"
)


def corpus(scenes: int) -> Iterator[str]:
    """Instructions for `scenes` generated scenes, and everyday words after each scene."""
    for i in range(scenes):
        rng = np.random.default_rng([i, 13])
        scene, _ = training_scene((i, 0), size_wh=(64, 64))
        for expression in make_expressions(scene, rng)[:8]:
            yield f"remove {expression.text}"
        yield EVERYDAY
