"""Referring expressions for the objects of a scene, each true of exactly one object."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np

from rism.evaluation.scenes.scene import SIZE_ORDER, Scene, SceneObject

Form = Literal["kind", "colour", "size", "place", "relation"]
FORMS: tuple[Form, ...] = get_args(Form)

FORM_WEIGHTS: Mapping[str, float] = {
    "kind": 0.20,
    "colour": 0.30,
    "size": 0.15,
    "place": 0.20,
    "relation": 0.15,
}

PLACE_MARGIN = 0.15
RELATION_MARGIN = 0.15
NEAR_GAP, FAR_GAP = 0.08, 0.20
NEEDED_WEIGHT = 3.0
_DROP_ARTICLE_CHANCE = 0.2
_OTHER_HALF = 0.45
_CORNER_CLEARANCE = 0.10
_BOX_SLACK = 0.04


@dataclass(frozen=True)
class Expression:
    """A phrase that describes one object.

    Attributes:
        text: Lower case, for instance ``"the small red dog"``.
        target: Index into ``Scene.objects``.
        form: What the phrase relies on, one of ``FORMS``.
        needed: Without that part (for ``kind``: always) the phrase would also fit other objects.
    """

    text: str
    target: int
    form: Form
    needed: bool


@dataclass(frozen=True)
class _Noun:
    """A noun phrase without article and the objects it fits."""

    text: str
    fits: tuple[int, ...]
    coloured: bool


@dataclass(frozen=True)
class _Spot:
    """An object's centre and box in fractions of the image, and its box in mean image sides."""

    centre: tuple[float, float]
    box: tuple[float, float, float, float]
    gap_box: tuple[float, float, float, float]


def _spots(scene: Scene) -> list[_Spot]:
    width, height = scene.size_wh
    side = float(np.sqrt(width * height))
    spots = []
    for item in scene.objects:
        x0, y0, x1, y1 = item.box_xyxy
        box = (x0 / width, y0 / height, x1 / width, y1 / height)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        spots.append(_Spot(centre, box, (x0 / side, y0 / side, x1 / side, y1 / side)))
    return spots


def _nouns(objects: Sequence[SceneObject]) -> list[_Noun]:
    """Every ``kind`` and ``colour kind`` that occurs in the scene."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, item in enumerate(objects):
        groups.setdefault((item.kind, False), []).append(index)
        groups.setdefault((f"{item.colour} {item.kind}", True), []).append(index)
    return [_Noun(text, tuple(fits), coloured) for (text, coloured), fits in groups.items()]


def _by_name(scene: Scene, nouns: Sequence[_Noun]) -> Iterator[Expression]:
    """``the dog``, ``the red dog`` and ``the red one``."""
    kinds = Counter(item.kind for item in scene.objects)
    colours: dict[str, list[int]] = {}
    for index, item in enumerate(scene.objects):
        colours.setdefault(item.colour, []).append(index)
    for noun in nouns:
        if len(noun.fits) != 1:
            continue
        target = noun.fits[0]
        if noun.coloured:
            needed = kinds[scene.objects[target].kind] > 1
            yield Expression(f"the {noun.text}", target, "colour", needed)
        else:
            yield Expression(f"the {noun.text}", target, "kind", True)
    for colour, fits in colours.items():
        if len(fits) == 1:
            for word in ("one", "thing"):
                yield Expression(f"the {colour} {word}", fits[0], "colour", True)


_SIZE_WORDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("small", "little")),
    (2, ("large", "big")),
)


def _by_size(scene: Scene, nouns: Sequence[_Noun]) -> Iterator[Expression]:
    """``the small dog``, ``the large red dog``, ``the smallest dog``, ``the bigger dog``."""
    for noun in nouns:
        ranks = {index: SIZE_ORDER.index(scene.objects[index].size_class) for index in noun.fits}
        needed, pair = len(noun.fits) > 1, len(noun.fits) == 2
        forms = _SIZE_WORDS
        if needed:
            smallest = ("smaller",) if pair else ("smallest",)
            largest = ("bigger", "larger") if pair else ("biggest", "largest")
            low, high = min(ranks.values()), max(ranks.values())
            forms = (*_SIZE_WORDS, (low, smallest), (high, largest))
        for rank, words in forms:
            same = [index for index, value in ranks.items() if value == rank]
            if len(same) == 1:
                for word in words:
                    yield Expression(f"the {word} {noun.text}", same[0], "size", needed)


_SIDES: tuple[tuple[int, bool, tuple[str, ...], str], ...] = (
    # axis, counted from the far end, phrases for the half, word for the extreme
    (0, False, ("the left {}", "the {} on the left"), "leftmost"),
    (0, True, ("the right {}", "the {} on the right"), "rightmost"),
    (1, False, ("the top {}", "the {} at the top"), "topmost"),
    (1, True, ("the bottom {}", "the {} at the bottom"), "bottommost"),
)


def _by_side(noun: _Noun, spots: Sequence[_Spot]) -> Iterator[Expression]:
    """``the dog on the left``, ``the left dog``, ``the leftmost dog`` and the other three sides."""
    for axis, reverse, phrases, extreme in _SIDES:
        where = {
            index: 1.0 - spots[index].centre[axis] if reverse else spots[index].centre[axis]
            for index in noun.fits
        }
        order = sorted(noun.fits, key=where.__getitem__)
        first = where[order[0]]
        if len(order) == 1:
            if first < 1 / 3:
                yield Expression(phrases[1].format(noun.text), order[0], "place", False)
            continue
        second = where[order[1]]
        if first >= 0.5 or second - first < PLACE_MARGIN:
            continue
        if len(order) == 2 or second >= _OTHER_HALF:
            for phrase in phrases:
                yield Expression(phrase.format(noun.text), order[0], "place", True)
        yield Expression(f"the {extreme} {noun.text}", order[0], "place", True)


def _by_middle(noun: _Noun, spots: Sequence[_Spot]) -> Iterator[Expression]:
    """``the dog in the middle``: inside the central third, the others clearly farther out."""
    off = {
        index: max(abs(spots[index].centre[0] - 0.5), abs(spots[index].centre[1] - 0.5))
        for index in noun.fits
    }
    order = sorted(noun.fits, key=off.__getitem__)
    if off[order[0]] >= 1 / 6:
        return
    needed = len(order) > 1
    if needed and (off[order[1]] - off[order[0]] < PLACE_MARGIN or off[order[1]] < 0.22):
        return
    yield Expression(f"the {noun.text} in the middle", order[0], "place", needed)


def _by_corner(noun: _Noun, spots: Sequence[_Spot]) -> Iterator[Expression]:
    """``the dog at the top left``: in that corner's third, no other near that quarter."""
    for vertical, horizontal in product(("top", "bottom"), ("left", "right")):
        inside, near = [], []
        for index in noun.fits:
            x, y = spots[index].centre
            worst = max(x if horizontal == "left" else 1 - x, y if vertical == "top" else 1 - y)
            if worst < 1 / 3:
                inside.append(index)
            if worst < 0.5 + _CORNER_CLEARANCE:
                near.append(index)
        if len(inside) == 1 and len(near) == 1:
            text = f"the {noun.text} at the {vertical} {horizontal}"
            yield Expression(text, inside[0], "place", len(noun.fits) > 1)


# Axis and sign of each direction.
_DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def _lead(direction: str, item: _Spot, anchor: _Spot) -> tuple[float, float]:
    """Return how far the item lies in a direction from the anchor, and how far across it."""
    axis, sign = _DIRECTIONS[direction]
    offset = [item.centre[at] - anchor.centre[at] for at in (0, 1)]
    return sign * offset[axis], abs(offset[1 - axis])


def _boxes_apart(direction: str, item: _Spot, anchor: _Spot) -> bool:
    """Tell whether the boxes hardly overlap along the direction."""
    axis, sign = _DIRECTIONS[direction]
    if sign < 0:
        return item.box[axis + 2] <= anchor.box[axis] + _BOX_SLACK
    return item.box[axis] >= anchor.box[axis + 2] - _BOX_SLACK


def _gap(first: _Spot, second: _Spot) -> float:
    """Return the distance between two boxes, in mean image sides; 0 if they touch or overlap."""
    a, b = first.gap_box, second.gap_box
    across = max(a[0] - b[2], b[0] - a[2], 0.0)
    down = max(a[1] - b[3], b[1] - a[3], 0.0)
    return float(np.hypot(across, down))


def _related(
    candidates: Sequence[int], anchor: int, spots: Sequence[_Spot]
) -> Iterator[tuple[str, int]]:
    """Yield the relations to the anchor that fit one candidate only, even when read loosely."""
    origin = spots[anchor]
    for direction in _DIRECTIONS:
        loose, clear = [], []
        for index in candidates:
            lead, across = _lead(direction, spots[index], origin)
            if lead > -0.05:
                loose.append(index)
            apart = _boxes_apart(direction, spots[index], origin)
            if lead >= RELATION_MARGIN and lead > 1.2 * across and apart:
                clear.append(index)
        if len(loose) == 1 and loose == clear:
            yield direction, clear[0]
    gaps = sorted((_gap(spots[index], origin), index) for index in candidates)
    if gaps and gaps[0][0] <= NEAR_GAP and (len(gaps) == 1 or gaps[1][0] >= FAR_GAP):
        yield "next to", gaps[0][1]


def _by_relation(
    scene: Scene, nouns: Sequence[_Noun], spots: Sequence[_Spot]
) -> Iterator[Expression]:
    """``the star next to the red car``, ``the dog left of the blue bus``."""
    anchors = [noun for noun in nouns if len(noun.fits) == 1]
    for anchor_noun in anchors:
        anchor = anchor_noun.fits[0]
        for noun in nouns:
            if anchor in noun.fits:
                continue  # "the dog left of the red dog" is hard to read
            if scene.objects[noun.fits[0]].kind == scene.objects[anchor].kind:
                continue
            for relation, target in _related(noun.fits, anchor, spots):
                text = f"the {noun.text} {relation} the {anchor_noun.text}"
                yield Expression(text, target, "relation", len(noun.fits) > 1)


def _all_expressions(scene: Scene) -> Iterator[Expression]:
    spots = _spots(scene)
    nouns = _nouns(scene.objects)
    yield from _by_name(scene, nouns)
    yield from _by_size(scene, nouns)
    for noun in nouns:
        yield from _by_side(noun, spots)
        yield from _by_middle(noun, spots)
        yield from _by_corner(noun, spots)
    yield from _by_relation(scene, nouns, spots)


def make_expressions(scene: Scene, rng: np.random.Generator) -> list[Expression]:
    """List expressions that are each true of exactly one object of the scene.

    They are of all forms and objects, in a fixed order; `rng` decides which of them lose their
    leading article.
    """
    found = list(_all_expressions(scene))
    bare = rng.random(len(found)) < _DROP_ARTICLE_CHANCE
    return [
        replace(item, text=item.text.removeprefix("the ")) if drop else item
        for item, drop in zip(found, bare, strict=True)
    ]


def pick_expression(scene: Scene, rng: np.random.Generator) -> Expression:
    """Draw a form by weight among those the scene allows, then an expression of that form.

    Expressions whose extra words are needed to tell objects apart are drawn three times as often.

    Raises:
        ValueError: the scene has no expression that fits only one of its objects.
    """
    by_form: dict[str, list[Expression]] = {}
    for item in make_expressions(scene, rng):
        by_form.setdefault(item.form, []).append(item)
    if not by_form:
        raise ValueError("the scene has no unambiguous expression")
    forms = list(by_form)
    shares = np.array([FORM_WEIGHTS[form] for form in forms], np.float64)
    choices = by_form[forms[int(rng.choice(len(forms), p=shares / shares.sum()))]]
    odds = np.array([NEEDED_WEIGHT if item.needed else 1.0 for item in choices])
    return choices[int(rng.choice(len(choices), p=odds / odds.sum()))]
