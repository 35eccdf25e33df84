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
from rism.evaluation.scenes.kinds import COLOUR_NAMES, COLOURS, KIND_NAMES, KINDS, Kind, draw_sprite
from rism.evaluation.scenes.scene import SIZE_ORDER, SIZE_RANGES, Scene, SceneObject, make_scene

_TRAINING_TAG = 0x7261696E
_HELD_OUT_TAG = 0x68656C64
_HELD_OUT_SIDES = (200, 480)
_HELD_OUT_MAX_ASPECT = 4 / 3
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


def _held_out_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height, each 200 to 480 pixels, aspect between 3:4 and 4:3."""
    low, high = _HELD_OUT_SIDES
    long_side = int(rng.integers(round(low * _HELD_OUT_MAX_ASPECT), high + 1))
    shortest = int(np.ceil(long_side / _HELD_OUT_MAX_ASPECT))
    short_side = int(rng.integers(shortest, long_side + 1))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)


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
    """Draw the held-out scene with this number and an expression for one of its objects.

    Args:
        index: Non-negative number of the scene; the same one gives the same scene.
        size_wh: Width and height in pixels; None draws sides of 200 to 480 pixels and an aspect
            between 3:4 and 4:3.
    """
    rng = np.random.default_rng(np.random.SeedSequence([_HELD_OUT_TAG, index]))
    drawn_wh = _held_out_size(rng)
    return _described_scene(rng, size_wh=size_wh or drawn_wh, form_weights=None)


__all__ = [
    "COLOURS",
    "COLOUR_NAMES",
    "DEFAULT_FORM_WEIGHTS",
    "FORMS",
    "KINDS",
    "KIND_NAMES",
    "SIZE_ORDER",
    "SIZE_RANGES",
    "Expression",
    "Kind",
    "Scene",
    "SceneObject",
    "draw_sprite",
    "held_out_scene",
    "make_background",
    "make_expressions",
    "make_scene",
    "pick_expression",
    "training_scene",
]
