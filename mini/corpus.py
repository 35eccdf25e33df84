"""The text that the tokenizer of `mini` is trained on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mini.batches import ask
from mini.nouns import meanings, plural
from mini.scenes import SceneMaker

EVERYDAY = (
    "a an and any at away back background behind below beside between big bigger biggest black "
    "bottom brown centre center colour color corner dark edge far first front from gray grey half "
    "in is it large larger largest last leave left light little lower middle near nearest next "
    "object of on one only other out over person picture please remove right second shape side "
    "single small smaller smallest that the thing this tiny to top two under up upper white with"
)


def corpus(folder: Path, scenes: int) -> Iterator[str]:
    """Instructions for `scenes` scenes of the sprites in `folder`, every noun, everyday words."""
    maker = SceneMaker(folder)
    for i in range(scenes):
        scene = maker.scene((i, 3), split="training", size_wh=(64, 64))
        for question in ask(scene, np.random.default_rng([i, 13]), 8):
            yield f"remove {question.text}"
        if i % 20 == 0:
            yield EVERYDAY
            for noun in meanings():
                yield f"remove the {noun}, {plural(noun)}"
