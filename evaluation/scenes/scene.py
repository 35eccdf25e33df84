"""Scenes: images of two to six known objects on a background."""

from collections.abc import Sequence
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
MIN_OBJECTS = 2

_SIZE_STEP_PX = 4
_PLACE_TRIES = 40
_SCENE_TRIES = 60
_OVERLAP_CHANCE = 0.3
_CUT_CHANCE = 0.12
_VISIBLE_SLACK = 0.04  # objects are placed by hard edges, `visible` is of soft ones


@dataclass(frozen=True)
class ObjectPlan:
    """An object that has no place yet."""

    kind: str
    colour: str
    size_class: SizeClass


# A plan with its sprite, (sh, sw, 4) uint8, and the place of the sprite's top left corner.
Placed = tuple[ObjectPlan, np.ndarray, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Attributes:
        kind, colour: Of ``KIND_NAMES`` and ``COLOUR_NAMES``.
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
    """An image with known objects.

    Attributes:
        image_hwc: (h, w, 3) uint8.
        background: (h, w, 3) uint8, the same image without any object.
        objects: Back to front.
        distractors: What deliberately similar objects differ in, or ``"none"``.
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
        image = _paint(self.background, kept)
        outside = ~self.objects[index].mask_hw
        image[outside] = self.image_hwc[outside]
        return image


def _paint(background: np.ndarray, objects: Sequence[SceneObject]) -> np.ndarray:
    """Draw objects, back to front, on a copy of a background."""
    image = background.copy()
    for item in objects:
        _blend(image, item.sprite, item.origin_xy)
    return image


def _overlap(
    origin_xy: tuple[int, int], sprite: np.ndarray, *, size_wh: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (rows, columns) of the image and of the sprite where they overlap."""
    x, y = origin_xy
    sprite_height, sprite_width = sprite.shape[:2]
    x0, x1 = max(x, 0), min(x + sprite_width, size_wh[0])
    y0, y1 = max(y, 0), min(y + sprite_height, size_wh[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _blend(image: np.ndarray, sprite: np.ndarray, origin_xy: tuple[int, int]) -> None:
    """Draw a sprite over the image in place: (h, w, 3) uint8 and (sh, sw, 4) uint8."""
    there, here = _overlap(origin_xy, sprite, size_wh=(image.shape[1], image.shape[0]))
    part = sprite[here]
    alpha = part[..., 3:].astype(np.uint16)
    below = image[there].astype(np.uint16)
    image[there] = ((part[..., :3] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _pick_size(rng: np.random.Generator, count: int) -> SizeClass:
    # More objects, smaller ones; the rest of the weight is "large".
    weights = {2: (0.30, 0.40), 3: (0.30, 0.40), 4: (0.42, 0.44)}.get(count, (0.60, 0.37))
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


def _plan_objects(rng: np.random.Generator, count: int) -> tuple[str, list[ObjectPlan]]:
    mode, plans = "none", list[ObjectPlan]()
    if rng.random() < DISTRACTOR_PROBABILITY:
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
    for image_side, sprite_side in zip(size_wh, (sprite.shape[1], sprite.shape[0]), strict=True):
        over = int(slack * sprite_side)
        room = max(image_side - sprite_side + over, -over)
        origin.append(int(rng.integers(-over, room + 1)))
    return origin[0], origin[1]


class _Canvas:
    """The objects that are placed so far, and which of them owns each pixel."""

    def __init__(self, rng: np.random.Generator, size_wh: tuple[int, int]) -> None:
        self.rng, self.size_wh = rng, size_wh
        self.placed: list[Placed] = []
        self._owner = np.zeros((size_wh[1], size_wh[0]), np.uint8)
        self._totals: list[int] = []  # solid pixels of each object
        self._lefts: list[int] = []  # those that no later object hides

    def place(self, plan: ObjectPlan, sprite: np.ndarray) -> bool:
        """Try random places for a sprite, and keep the first that fits."""
        solid = sprite[..., 3] >= 128
        for _ in range(_PLACE_TRIES):
            origin = _random_origin(self.rng, sprite, size_wh=self.size_wh)
            there, here = _overlap(origin, sprite, size_wh=self.size_wh)
            part = solid[here]
            if np.count_nonzero(part) < (1.0 - MAX_CUT_OFF) * np.count_nonzero(solid):
                continue
            hidden = np.bincount(self._owner[there][part], minlength=len(self.placed) + 1)[1:]
            if hidden.any() and not self._may_hide(plan, hidden.tolist()):
                continue
            lefts = [left - loss for left, loss in zip(self._lefts, hidden.tolist(), strict=True)]
            self._lefts = [*lefts, int(np.count_nonzero(part))]
            self._totals.append(int(np.count_nonzero(solid)))
            self.placed.append((plan, sprite, origin))
            self._owner[there][part] = len(self.placed)
            return True
        return False

    def _may_hide(self, plan: ObjectPlan, hidden: list[int]) -> bool:
        """Decide whether an object may hide so many pixels of each earlier one."""
        if self.rng.random() > _OVERLAP_CHANCE:
            return False
        limit = MIN_VISIBLE + _VISIBLE_SLACK
        return all(
            not loss
            # Objects of one colour would not be told apart where they overlap.
            or (other.colour != plan.colour and left - loss >= limit * total)
            for loss, (other, _, _), left, total in zip(
                hidden, self.placed, self._lefts, self._totals, strict=True
            )
        )


def _place_objects(
    rng: np.random.Generator, plans: list[ObjectPlan], *, size_wh: tuple[int, int], fine: bool
) -> list[Placed] | None:
    """Find a place for every plan, back to front, or None if one does not fit."""
    canvas = _Canvas(rng, size_wh)
    for plan in plans:
        size_px = _sprite_size(rng, plan.size_class, size_wh=size_wh)
        shades = COLOURS[plan.colour]
        colour = shades[int(rng.integers(len(shades)))]
        flip = bool(rng.random() < 0.5)
        sprite = draw_sprite(plan.kind, colour, size_px=size_px, flip=flip)
        if fine:
            sprite = ruffle(sprite, rng)
        if not canvas.place(plan, sprite):
            return None
    return canvas.placed


def _finish_objects(
    placed: list[Placed], *, size_wh: tuple[int, int]
) -> tuple[SceneObject, ...] | None:
    """Compute the visible masks, front to back; None if an object is hidden too much."""
    clear = np.ones((size_wh[1], size_wh[0]), np.float32)  # transparency of all in front
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
        left, right = x0 + int(columns[0]), x0 + int(columns[-1]) + 1
        box = (left, y0 + int(rows[0]), right, y0 + int(rows[-1]) + 1)
        named = plan.kind, plan.colour, plan.size_class
        objects.append(SceneObject(*named, box, mask, depth, visible, sprite, origin))
        clear[there] *= 1.0 - alpha[here]
    return tuple(reversed(objects))


def make_scene(
    rng: np.random.Generator, *, size_wh: tuple[int, int] = (128, 128), fine: bool = False
) -> Scene:
    """Draw a random scene.

    Every object is at least 60 % visible and at most 15 % cut off; with `fine` its outline is
    ruffled. The same state of `rng` gives the same scene.

    Raises:
        ValueError: A side has less than 64 pixels.
    """
    if min(size_wh) < 64:
        raise ValueError(f"a scene needs at least 64 pixels a side, got {size_wh}")
    background = make_background(rng, size_wh=size_wh)
    for _ in range(_SCENE_TRIES):
        number = MIN_OBJECTS + int(rng.choice(5, p=(0.2, 0.27, 0.25, 0.16, 0.12)))
        mode, plans = _plan_objects(rng, number)
        placed = _place_objects(rng, plans, size_wh=size_wh, fine=fine)
        objects = None if placed is None else _finish_objects(placed, size_wh=size_wh)
        if objects is None:
            continue
        return Scene(_paint(background, objects), background, objects, mode)
    raise ValueError(f"no arrangement of objects fits an image of {size_wh}")
