"""Drawn scenes with known objects and referring expressions, for training and judging.

Training and held-out scenes come from seed streams with different tags, so that no held-out
picture can ever be trained on, whatever numbers a caller passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rism.evaluation.scenes.backgrounds import make_background
from rism.evaluation.scenes.expressions import (
    DEFAULT_FORM_WEIGHTS,
    FORMS,
    Expression,
    make_expressions,
    pick_expression,
)
from rism.evaluation.scenes.judged import (
    SETS,
    SPLITS,
    Absent,
    SceneSetName,
    Split,
    absent_expression,
    judged_scene,
)
from rism.evaluation.scenes.kinds import COLOUR_NAMES, COLOURS, KIND_NAMES, KINDS, Kind, draw_sprite
from rism.evaluation.scenes.scene import SIZE_ORDER, SIZE_RANGES, Scene, SceneObject, make_scene

_TRAINING_TAG = 0x7261696E
_DRAWS = 50


def _described_scene(
    rng: np.random.Generator,
    *,
    size_wh: tuple[int, int],
    form_weights: Mapping[str, float] | None,
) -> tuple[Scene, Expression]:
    """Draw scenes until one has an expression of a requested form."""
    problem: ValueError | None = None
    for _ in range(_DRAWS):
        scene = make_scene(rng, size_wh=size_wh)
        try:
            return scene, pick_expression(scene, rng, form_weights=form_weights)
        except ValueError as error:
            problem = error
    raise ValueError(f"none of {_DRAWS} scenes could be described: {problem}") from problem


def training_scene(
    seed_tuple: Sequence[int],
    *,
    size_wh: tuple[int, int] = (128, 128),
    form_weights: Mapping[str, float] | None = None,
) -> tuple[Scene, Expression]:
    """Draw a training scene and an expression for one of its objects.

    Args:
        seed_tuple: Non-negative integers, for instance (run seed, worker, step); the same ones
            give the same scene.
        size_wh: Width and height in pixels.
        form_weights: Weight per expression form; None for the default weights.
    """
    rng = np.random.default_rng(np.random.SeedSequence([_TRAINING_TAG, *seed_tuple]))
    return _described_scene(rng, size_wh=size_wh, form_weights=form_weights)


def held_out_scene(
    index: int, *, size_wh: tuple[int, int] | None = None
) -> tuple[Scene, Expression]:
    """Draw the plain test scene with this number; see `judged_scene`."""
    return judged_scene(index, size_wh=size_wh)


__all__ = [
    "COLOURS",
    "COLOUR_NAMES",
    "DEFAULT_FORM_WEIGHTS",
    "FORMS",
    "KINDS",
    "KIND_NAMES",
    "SETS",
    "SIZE_ORDER",
    "SIZE_RANGES",
    "SPLITS",
    "Absent",
    "Expression",
    "Kind",
    "Scene",
    "SceneObject",
    "SceneSetName",
    "Split",
    "absent_expression",
    "draw_sprite",
    "held_out_scene",
    "judged_scene",
    "make_background",
    "make_expressions",
    "make_scene",
    "pick_expression",
    "training_scene",
]
