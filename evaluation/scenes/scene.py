"""Scenes: pictures of two to six known objects on a background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rism.evaluation.scenes.backgrounds import make_background
from rism.evaluation.scenes.kinds import COLOUR_NAMES, COLOURS, KIND_NAMES, draw_sprite
from rism.evaluation.scenes.ruffles import ruffle

SizeClass = Literal["small", "medium", "large"]

SIZE_RANGES: dict[SizeClass, tuple[float, float]] = {
    "small": (0.24, 0.29),
    "medium": (0.34, 0.41),
    "large": (0.48, 0.58),
}
SIZE_ORDER: tuple[SizeClass, ...] = ("small", "medium", "large")
MIN_VISIBLE = 0.60
MAX_CUT_OFF = 0.15
DISTRACTOR_PROBABILITY = 0.6
MIN_OBJECTS, MAX_OBJECTS = 2, 6

_SIZE_STEP_PX = 4
_PLACE_TRIES = 40
_SCENE_TRIES = 60
_OVERLAP_CHANCE = 0.3
_CUT_CHANCE = 0.12
_VISIBLE_SLACK = 0.04  # placing works on hard edges, the promise is about soft ones


@dataclass(frozen=True)
class ObjectPlan:
    """What to draw, before it has a place."""

    kind: str
    colour: str
    size_class: SizeClass


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Attributes:
        kind: One of ``KIND_NAMES``.
        colour: One of ``COLOUR_NAMES``.
        size_class: ``"small"``, ``"medium"`` or ``"large"``.
        box_xyxy: Bounds of the visible part in pixels, right and bottom exclusive.
        mask_hw: (h, w) bool, every pixel the object contributes to.
        depth: Drawing order; a higher one lies on top.
        visible: Share of the object that is seen, 0..1.
        sprite: (sh, sw, 4) uint8 RGBA, read-only.
        origin_xy: Where the top left corner of the sprite lies; may be negative.
    """

    kind: str
    colour: str
    size_class: SizeClass
    box_xyxy: tuple[int, int, int, int]
    mask_hw: np.ndarray
    depth: int
    visible: float
    sprite: np.ndarray
    origin_xy: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with known objects.

    Attributes:
        image_hwc: (h, w, 3) uint8.
        background: (h, w, 3) uint8, the same picture without any object.
        objects: Back to front.
        distractors: Name of the deliberate confusion in the scene, or ``"none"``.
    """

    image_hwc: np.ndarray
    background: np.ndarray
    objects: tuple[SceneObject, ...]
    distractors: str

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image_hwc.shape[1], self.image_hwc.shape[0]

    def without(self, index: int) -> np.ndarray:
        """Render the scene with one object removed: (h, w, 3) uint8.

        What lies beneath reappears; pixels outside the object's ``mask_hw`` are unchanged.

        Raises:
            IndexError: There is no such object.
        """
        if not 0 <= index < len(self.objects):
            raise IndexError(f"no object {index} in a scene of {len(self.objects)}")
        kept = [item for place, item in enumerate(self.objects) if place != index]
        picture = self.background.copy()
        for item in kept:
            _blend(picture, item.sprite, item.origin_xy)
        picture[~self.objects[index].mask_hw] = self.image_hwc[~self.objects[index].mask_hw]
        return picture


def _overlap(
    origin_xy: tuple[int, int], sprite: np.ndarray, *, size_wh: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (rows, columns) of the picture and of the sprite where the two meet."""
    x, y = origin_xy
    sprite_height, sprite_width = sprite.shape[:2]
    x0, x1 = max(x, 0), min(x + sprite_width, size_wh[0])
    y0, y1 = max(y, 0), min(y + sprite_height, size_wh[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _blend(picture: np.ndarray, sprite: np.ndarray, origin_xy: tuple[int, int]) -> None:
    """Lay a sprite over the picture in place: (h, w, 3) uint8 and (sh, sw, 4) uint8."""
    size_wh = picture.shape[1], picture.shape[0]
    there, here = _overlap(origin_xy, sprite, size_wh=size_wh)
    part = sprite[here]
    alpha = part[..., 3:].astype(np.uint16)
    below = picture[there].astype(np.uint16)
    picture[there] = ((part[..., :3] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _pick_size(rng: np.random.Generator, count: int) -> SizeClass:
    if count <= 3:
        weights = (0.30, 0.40, 0.30)
    elif count == 4:
        weights = (0.42, 0.44, 0.14)
    else:
        weights = (0.60, 0.37, 0.03)
    draw = rng.random()
    if draw < weights[0]:
        return "small"
    return "medium" if draw < weights[0] + weights[1] else "large"


def _distractor_plans(rng: np.random.Generator, count: int) -> tuple[str, list[ObjectPlan]]:
    """Two or three objects that differ in one chosen respect only."""
    mode = _pick(rng, ("colours", "places", "sizes", "kinds"))
    copies = 3 if count >= 4 and rng.random() < 0.4 else 2
    kind, colour, size = _pick(rng, KIND_NAMES), _pick(rng, COLOUR_NAMES), _pick_size(rng, count)
    if mode == "colours":
        colours = rng.choice(len(COLOUR_NAMES), copies, replace=False)
        return mode, [ObjectPlan(kind, COLOUR_NAMES[int(c)], size) for c in colours]
    if mode == "kinds":
        kinds = rng.choice(len(KIND_NAMES), copies, replace=False)
        return mode, [ObjectPlan(KIND_NAMES[int(k)], colour, size) for k in kinds]
    if mode == "places":
        return mode, [ObjectPlan(kind, colour, size) for _ in range(copies)]
    same_colour = rng.random() < 0.5
    top: SizeClass = "large" if count <= 4 and rng.random() < 0.7 else "medium"
    plans = [ObjectPlan(kind, colour, top)]
    for _ in range(copies - 1):
        other = colour if same_colour else _pick(rng, COLOUR_NAMES)
        plans.append(ObjectPlan(kind, other, "small"))
    if rng.random() < 0.5 and copies == 3:
        plans[1] = ObjectPlan(kind, plans[1].colour, top)
    return mode, plans


def _plan_objects(
    rng: np.random.Generator, *, count: int, distractor_probability: float
) -> tuple[str, list[ObjectPlan]]:
    mode, plans = "none", list[ObjectPlan]()
    if rng.random() < distractor_probability:
        mode, plans = _distractor_plans(rng, count)
    while len(plans) < count:
        plans.append(
            ObjectPlan(_pick(rng, KIND_NAMES), _pick(rng, COLOUR_NAMES), _pick_size(rng, count))
        )
    order = rng.permutation(len(plans))
    return mode, [plans[int(place)] for place in order]


def _sprite_size(
    rng: np.random.Generator, size_class: SizeClass, *, size_wh: tuple[int, int]
) -> int:
    """Longer side in pixels, on a coarse grid where the range allows it."""
    side = float(np.sqrt(size_wh[0] * size_wh[1]))
    low, high = (side * share for share in SIZE_RANGES[size_class])
    first, last = int(np.ceil(low / _SIZE_STEP_PX)), int(np.floor(high / _SIZE_STEP_PX))
    if first > last:
        return max(8, round((low + high) / 2))
    return max(8, int(rng.integers(first, last + 1)) * _SIZE_STEP_PX)


def _random_origin(
    rng: np.random.Generator, sprite: np.ndarray, *, size_wh: tuple[int, int]
) -> tuple[int, int]:
    origin = []
    slack = MAX_CUT_OFF if rng.random() < _CUT_CHANCE else 0.0
    for picture_side, sprite_side in zip(size_wh, (sprite.shape[1], sprite.shape[0]), strict=True):
        over = int(slack * sprite_side)
        room = max(picture_side - sprite_side + over, -over)
        origin.append(int(rng.integers(-over, room + 1)))
    return origin[0], origin[1]


def _fits(
    rng: np.random.Generator,
    owner: np.ndarray,
    *,
    solid: np.ndarray,
    there: tuple[slice, slice],
    here: tuple[slice, slice],
    totals: list[int],
    lefts: list[int],
    barred: list[bool],
) -> list[int] | None:
    """Solid pixels left to each earlier object if this one is placed here; None if it may not.

    ``barred`` marks the earlier objects that it must not hide at all.
    """
    part = solid[here]
    if np.count_nonzero(part) < (1.0 - MAX_CUT_OFF) * np.count_nonzero(solid):
        return None
    hidden = np.bincount(owner[there][part], minlength=len(totals) + 1)[1:]
    if not hidden.any():
        return list(lefts)
    if rng.random() > _OVERLAP_CHANCE:
        return None
    if any(loss and bar for loss, bar in zip(hidden, barred, strict=True)):
        return None
    remaining = [left - int(loss) for left, loss in zip(lefts, hidden, strict=True)]
    limit = MIN_VISIBLE + _VISIBLE_SLACK
    if any(left < limit * total for left, total in zip(remaining, totals, strict=True)):
        return None
    return remaining


def _place_objects(
    rng: np.random.Generator, plans: list[ObjectPlan], *, size_wh: tuple[int, int], fine: bool
) -> list[tuple[ObjectPlan, np.ndarray, tuple[int, int]]] | None:
    """Find a place for every plan, back to front, or None if one does not fit."""
    owner = np.zeros((size_wh[1], size_wh[0]), np.uint8)
    placed: list[tuple[ObjectPlan, np.ndarray, tuple[int, int]]] = []
    totals: list[int] = []
    lefts: list[int] = []
    for plan in plans:
        size_px = _sprite_size(rng, plan.size_class, size_wh=size_wh)
        shades = COLOURS[plan.colour]
        colour = shades[int(rng.integers(len(shades)))]
        flip = bool(rng.random() < 0.5)
        sprite = draw_sprite(plan.kind, colour, size_px=size_px, flip=flip)
        if fine:
            sprite = ruffle(sprite, rng)
        solid = sprite[..., 3] >= 128
        barred = [other.colour == plan.colour for other, _, _ in placed]  # would melt together
        for _ in range(_PLACE_TRIES):
            origin = _random_origin(rng, sprite, size_wh=size_wh)
            there, here = _overlap(origin, sprite, size_wh=size_wh)
            remaining = _fits(
                rng,
                owner,
                solid=solid,
                there=there,
                here=here,
                totals=totals,
                lefts=lefts,
                barred=barred,
            )
            if remaining is not None:
                break
        else:
            return None
        owner[there][solid[here]] = len(placed) + 1
        placed.append((plan, sprite, origin))
        totals.append(int(np.count_nonzero(solid)))
        lefts = [*remaining, int(np.count_nonzero(solid[here]))]
    return placed


def _finish_objects(
    placed: list[tuple[ObjectPlan, np.ndarray, tuple[int, int]]], *, size_wh: tuple[int, int]
) -> tuple[SceneObject, ...] | None:
    """Work out visible masks, front to back; None if an object is hidden too much."""
    clear = np.ones((size_wh[1], size_wh[0]), np.float32)  # light let through from above
    objects: list[SceneObject] = []
    for depth in range(len(placed) - 1, -1, -1):
        plan, sprite, origin = placed[depth]
        there, here = _overlap(origin, sprite, size_wh=size_wh)
        alpha = sprite[..., 3].astype(np.float32) / 255.0
        seen = alpha[here] * clear[there]
        visible = float(seen.sum() / alpha.sum())
        if visible < MIN_VISIBLE:
            return None
        touched = seen > 0.0
        mask = np.zeros(clear.shape, bool)
        mask[there] = touched
        rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        x0, y0 = there[1].start, there[0].start
        box = (
            x0 + int(columns[0]),
            y0 + int(rows[0]),
            x0 + int(columns[-1]) + 1,
            y0 + int(rows[-1]) + 1,
        )
        objects.append(
            SceneObject(
                plan.kind, plan.colour, plan.size_class, box, mask, depth, visible, sprite, origin
            )
        )
        clear[there] *= 1.0 - alpha[here]
    return tuple(reversed(objects))


def make_scene(
    rng: np.random.Generator,
    *,
    size_wh: tuple[int, int] = (128, 128),
    count: int | None = None,
    distractor_probability: float = DISTRACTOR_PROBABILITY,
    fine: bool = False,
) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        size_wh: Width and height in pixels, each at least 64.
        count: Number of objects, 2 to 6; drawn at random when None.
        distractor_probability: How often the scene holds deliberate look-alikes.
        fine: Ruffle the outlines of the objects.

    Returns:
        The scene; every object is at least 60 % visible and at most 15 % cut off.

    Raises:
        ValueError: The size or the number of objects is out of range.
    """
    if min(size_wh) < 64:
        raise ValueError(f"a scene needs at least 64 pixels a side, got {size_wh}")
    if count is not None and not MIN_OBJECTS <= count <= MAX_OBJECTS:
        raise ValueError(f"count must be {MIN_OBJECTS} to {MAX_OBJECTS}, got {count}")
    background = make_background(rng, size_wh=size_wh)
    for _ in range(_SCENE_TRIES):
        number = count or int(rng.choice(5, p=(0.2, 0.27, 0.25, 0.16, 0.12))) + MIN_OBJECTS
        mode, plans = _plan_objects(
            rng, count=number, distractor_probability=distractor_probability
        )
        placed = _place_objects(rng, plans, size_wh=size_wh, fine=fine)
        objects = None if placed is None else _finish_objects(placed, size_wh=size_wh)
        if objects is None:
            continue
        picture = background.copy()
        for item in objects:
            _blend(picture, item.sprite, item.origin_xy)
        return Scene(picture, background, objects, mode)
    raise ValueError(f"no arrangement of objects fits a picture of {size_wh}")
