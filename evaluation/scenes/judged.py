"""Scenes with an expression, from separate random streams for tuning and test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rism.evaluation.names import SceneSetName
from rism.evaluation.scenes.expressions import Expression, pick_expression
from rism.evaluation.scenes.kinds import COLOUR_NAMES, KIND_NAMES
from rism.evaluation.scenes.scene import Scene, make_scene

Split = Literal["tuning", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Tags of the random streams. "test" of "plain" is the stream that mini was first scored on.
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
class AbsentExpression:
    """An expression that fits no object of a scene.

    Attributes:
        text: lower case.
        form: "other kind" where no object is of that kind, "other colour" where objects of the
            kind are there but none of the colour.
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
    """Draw an evaluation scene and an expression for one of its objects.

    Args:
        index: non-negative number of the scene; the same one gives the same scene.
        kind: "plain" and "absent" have the images that mini is scored on; in "same-kind" there are
            two or three objects of the target's kind and the expression names more than the kind;
            "fine" has ruffled outlines in images of 640 x 480.
        split: "tuning" for choosing settings, "test" for the final scores.
        size_wh: width and height in pixels; None for those of the set.
        seed: selects another stream of scenes of the same set and split; 0 for the published one.
    """
    rng = _rng([_TAGS[split], *_SET_TAGS[kind], index], seed)
    drawn_wh = _size(rng)
    if kind == "fine":
        drawn_wh = _FINE_WH if drawn_wh[0] > drawn_wh[1] else _FINE_WH[::-1]
    for scene, expression in _described(rng, size_wh or drawn_wh, fine=kind == "fine"):
        if kind != "same-kind" or _is_one_of_several(scene, expression):
            return scene, expression
    raise ValueError(f"no scene of set {kind} came up in {_DRAWS} draws")


def absent_expression(
    scene: Scene, index: int, *, split: Split = "test", seed: int = 0
) -> AbsentExpression:
    """Draw an expression that fits no object of a scene; for the rest see `judged_scene`."""
    rng = _rng([_TAGS[split], _ABSENT_TAG, index], seed)
    kinds = {item.kind for item in scene.objects}
    pairs = {(item.kind, item.colour) for item in scene.objects}
    place = _one_of(rng, _PLACES)
    if rng.random() < 0.35:
        kind = _one_of(rng, sorted(kinds))
        colour = _one_of(rng, [name for name in COLOUR_NAMES if (kind, name) not in pairs])
        return AbsentExpression(f"the {colour} {kind} {place}".strip(), "other colour")
    noun = _one_of(rng, [name for name in KIND_NAMES if name not in kinds])
    if rng.random() < 0.5:
        noun = f"{_one_of(rng, COLOUR_NAMES)} {noun}"
    return AbsentExpression(f"the {noun} {place}".strip(), "other kind")


def _one_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _rng(tags: list[int], seed: int = 0) -> np.random.Generator:
    """Make a separate stream for each seed: a spawn key never equals longer tags."""
    key = (seed,) if seed else ()
    return np.random.default_rng(np.random.SeedSequence(tags, spawn_key=key))


def _described(
    rng: np.random.Generator, size_wh: tuple[int, int], *, fine: bool = False
) -> Iterator[tuple[Scene, Expression]]:
    """Draw scenes, up to a limit, and yield those that have an expression."""
    for _ in range(_DRAWS):
        scene = make_scene(rng, size_wh=size_wh, fine=fine)
        try:
            yield scene, pick_expression(scene, rng)
        except ValueError:
            continue


def _is_one_of_several(scene: Scene, expression: Expression) -> bool:
    kinds = Counter(item.kind for item in scene.objects)
    return expression.needed and kinds[scene.objects[expression.target].kind] in _SAME_KIND


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height, each 200 to 480 pixels, aspect between 3:4 and 4:3."""
    low, high = _SIDES
    long_side = int(rng.integers(round(low * _MAX_ASPECT), high + 1))
    shortest = int(np.ceil(long_side / _MAX_ASPECT))
    short_side = int(rng.integers(shortest, long_side + 1))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
