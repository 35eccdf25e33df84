"""Scenes that are judged and never trained on, in splits by seed and in sets by what is hard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rism.evaluation.scenes.expressions import Expression, pick_expression
from rism.evaluation.scenes.kinds import COLOUR_NAMES, KIND_NAMES
from rism.evaluation.scenes.scene import Scene, make_scene

__all__ = ["SETS", "SPLITS", "Absent", "SceneSetName", "Split", "absent_expression", "judged_scene"]

SceneSetName = Literal["plain", "same-kind", "fine", "absent"]
SETS: tuple[SceneSetName, ...] = get_args(SceneSetName)
Split = Literal["tuning", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Tags of the streams. "test" of "plain" is the stream that mini was first scored on.
_TAGS: dict[Split, int] = {"tuning": 0x74756E65, "test": 0x68656C64}
_SET_TAGS: dict[SceneSetName, tuple[int, ...]] = {
    "plain": (),
    "same-kind": (0x6B696E64,),
    "fine": (0x66696E65,),
    "absent": (),
}
_ABSENT_TAG = 0x676F6E65
_SIDES = (200, 480)
_MAX_ASPECT = 4 / 3
_FINE_WH = (640, 480)
_DRAWS = 200
_SAME_KIND = (2, 3)
_PLACES = ("", "", "", "on the left", "on the right", "at the top", "at the bottom")


@dataclass(frozen=True)
class Absent:
    """An expression that is true of nothing in a scene.

    Attributes:
        text: lower case.
        form: "other kind" where nothing in the scene is of that kind, "other colour" where
            things of the kind are there but none of the colour.
    """

    text: str
    form: Literal["other kind", "other colour"]


def judged_scene(
    index: int,
    *,
    kind: SceneSetName = "plain",
    split: Split = "test",
    size_wh: tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[Scene, Expression]:
    """Draw a scene of a set, and an expression for one of its objects.

    Args:
        index: non-negative number of the scene; the same one gives the same scene.
        kind: "plain" and "absent" have the pictures that mini is scored on; of "same-kind" the
            object has one or two of its kind beside it and the expression needs more than the
            kind; "fine" has ruffled outlines in pictures of 640 x 480.
        split: "tuning" for choosing, "test" for judging what was chosen.
        size_wh: width and height in pixels; None for those of the set.
        seed: of another stream of scenes of the same set and split; 0 for the published ones.
    """
    rng = _rng([_TAGS[split], *_SET_TAGS[kind], index], seed)
    drawn_wh = _size(rng)
    if kind == "fine":
        drawn_wh = _FINE_WH if drawn_wh[0] > drawn_wh[1] else _FINE_WH[::-1]
    for scene, expression in _described(rng, size_wh or drawn_wh, fine=kind == "fine"):
        if kind != "same-kind" or _is_one_of_its_kind(scene, expression):
            return scene, expression
    raise ValueError(f"no scene of set {kind} came up in {_DRAWS} draws")


def absent_expression(scene: Scene, index: int, *, split: Split = "test", seed: int = 0) -> Absent:
    """Name something that a scene does not have.

    Args:
        scene: the scene.
        index: its number, and `split`: the same ones give the same expression.
        split: see `judged_scene`.
        seed: likewise.
    """
    rng = _rng([_TAGS[split], _ABSENT_TAG, index], seed)
    kinds = {item.kind for item in scene.objects}
    pairs = {(item.kind, item.colour) for item in scene.objects}
    place = _PLACES[int(rng.integers(len(_PLACES)))]
    if rng.random() < 0.35:
        here = sorted(kinds)
        kind = here[int(rng.integers(len(here)))]
        others = [colour for colour in COLOUR_NAMES if (kind, colour) not in pairs]
        noun, form = f"{others[int(rng.integers(len(others)))]} {kind}", "other colour"
    else:
        missing = [kind for kind in KIND_NAMES if kind not in kinds]
        noun, form = missing[int(rng.integers(len(missing)))], "other kind"
        if rng.random() < 0.5:
            noun = f"{COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]} {noun}"
    text = f"the {noun} {place}".strip()
    return Absent(text, "other colour" if form == "other colour" else "other kind")


def _rng(tags: list[int], seed: int) -> np.random.Generator:
    """A stream of its own for each seed: a spawn key never equals longer tags."""
    key = (seed,) if seed else ()
    return np.random.default_rng(np.random.SeedSequence(tags, spawn_key=key))


def _described(
    rng: np.random.Generator, size_wh: tuple[int, int], *, fine: bool
) -> Iterator[tuple[Scene, Expression]]:
    """Scenes that have an expression, up to a limit."""
    for _ in range(_DRAWS):
        scene = make_scene(rng, size_wh=size_wh, fine=fine)
        try:
            yield scene, pick_expression(scene, rng)
        except ValueError:
            continue


def _is_one_of_its_kind(scene: Scene, expression: Expression) -> bool:
    kinds = Counter(item.kind for item in scene.objects)
    there = kinds[scene.objects[expression.target].kind]
    return expression.needed and there in _SAME_KIND


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height, each 200 to 480 pixels, aspect between 3:4 and 4:3."""
    low, high = _SIDES
    long_side = int(rng.integers(round(low * _MAX_ASPECT), high + 1))
    shortest = int(np.ceil(long_side / _MAX_ASPECT))
    short_side = int(rng.integers(shortest, long_side + 1))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
