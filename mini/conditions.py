"""Conditions on the things of a scene, and the words for them.

A condition gives each thing 1 (fits), -1 (does not) or 0 (unclear).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mini.assets import kinds
from mini.colours import COLOUR_NAMES
from mini.nouns import always_plural, meanings, one, unclear_kinds
from mini.scenes import EmojiScene

Form = Literal[
    "kind",
    "colour",
    "size",
    "place",
    "order",
    "relation",
    "look",
    "not",
    "all",
    "absent",
    "unknown",
]
FORMS: tuple[Form, ...] = get_args(Form)
Fits = np.ndarray  # (things,) int8: 1, 0 or -1


@dataclass(frozen=True)
class Condition:
    """A condition with the words for it, before the noun or after it."""

    form: Form
    fits: Fits
    words: tuple[str, ...]
    before: bool
    concepts: tuple[str, ...]
    anchor: str = ""


def _of_another(part: Condition) -> tuple[str, ...]:
    """The concepts of a condition that does not hold for what is asked."""
    return tuple(f"anchor {c}" if c in COLOUR_NAMES else c for c in part.concepts)


def _clear(yes: np.ndarray, no: np.ndarray) -> Fits:
    return np.where(yes, 1, np.where(no, -1, 0)).astype(np.int8)


class Conditions:
    """The conditions on the things of one scene that are true of some of them."""

    def __init__(self, scene: EmojiScene, rng: np.random.Generator) -> None:
        self.scene, self.rng, self.things = scene, rng, scene.things
        self.centres = np.array([thing.centre for thing in self.things])
        self.colours = np.stack([thing.colours for thing in self.things])
        self.areas = np.sqrt([t.mask_hw.mean() for t in self.things])

    def noun(self, word: str) -> Fits:
        """Which things a noun names; "thing" and "one" are all."""
        if word not in meanings():
            return np.ones(len(self.things), np.int8)
        means, unclear = meanings()[word], unclear_kinds(word)
        return np.array(
            [1 if t.kind in means else 0 if t.kind in unclear else -1 for t in self.things], np.int8
        )

    def colour(self, index: int) -> Fits:
        """Which things have mostly that colour."""
        share = self.colours[:, index]
        rest = np.delete(self.colours, index, axis=1).max(1)
        return _clear((share >= 0.5) & (rest < 0.3), share < 0.08)

    def part(self, form: Form, among: Fits, target: int) -> Condition | None:
        """A condition of a form that is true of the target."""
        found: dict[Form, Callable[[Fits, int], Iterator[Condition]]] = {
            "colour": self._colours,
            "size": self._sizes,
            "place": self._places,
            "order": self._orders,
            "look": self._looks,
            "not": self._nots,
            "relation": self._relations,
        }
        options = list(found[form](among, target))
        return options[int(self.rng.integers(len(options)))] if options else None

    def _colours(self, _among: Fits, target: int) -> Iterator[Condition]:
        for index, name in enumerate(COLOUR_NAMES):
            fits = self.colour(index)
            if fits[target] == 1:
                said = (name, "gray") if name == "grey" else (name,)
                late = tuple(f"{link} {word}" for word in said for link in ("that is", "which is"))
                yield Condition("colour", fits, said, True, (name,))
                yield Condition("colour", fits, late, False, (name,))

    def _ranked(self, values: np.ndarray, among: Fits, ratio: float, gap: float) -> Fits:
        """1 for the largest of those that fit if it is clearly so, -1 for what is clearly less."""
        own = np.where(among == 1, values, -np.inf)
        top = own.max()
        limit = min(top / ratio if top > 0 else top * ratio, top - gap)
        return np.where(among == 1, _clear(own >= top, own <= limit), -1).astype(np.int8)

    def _sizes(self, among: Fits, target: int) -> Iterator[Condition]:
        side, count = self.areas, int((among == 1).sum())
        small = _clear(side < 0.13, side > 0.2)
        large = _clear(side > 0.3, side < 0.2)
        found: list[tuple[Fits, tuple[str, ...], str]] = [
            (small, ("small", "little", "tiny"), "small"),
            (large, ("large", "big", "huge"), "large"),
        ]
        if count > 1:
            both = count == 2
            least = self._ranked(1 / np.maximum(side, 1e-3), among, 1.3, 0.0)
            most = self._ranked(side, among, 1.3, 0.0)
            less, more = (("smaller",), ("bigger", "larger")) if both else ((), ())
            found += [
                (least, ("smallest", "littlest", "tiniest", *less), "smallest"),
                (most, ("largest", "biggest", *more), "largest"),
                (least, ("small", "little"), "smallest"),
                (most, ("big", "large"), "largest"),
            ]
        for fits, said, concept in found:
            if fits[target] == 1:
                yield Condition("size", fits, said, True, (concept,))

    def _places(self, among: Fits, target: int) -> Iterator[Condition]:
        x, y = self.centres.T
        count = int((among == 1).sum())
        for value, side, most in (
            (x, "left", "leftmost"),
            (1 - x, "right", "rightmost"),
            (y, "top", "topmost"),
            (1 - y, "bottom", "bottommost"),
        ):
            fits = _clear(value < 0.36, value > 0.5)
            at = "on the" if side in ("left", "right") else "at the"
            said = (
                f"{at} {side}",
                f"{at} {side} side" if at == "on the" else f"near the {side}",
                f"in the {side} half",
            )
            if fits[target] == 1:
                yield Condition("place", fits, said, False, (side,))
            if count > 1:
                fits = self._ranked(1 - value, among, 1.0, 0.1)
                if fits[target] == 1:
                    extra = (side,) if count == 2 else ()
                    yield Condition("place", fits, (most, *extra), True, (most,))
                    yield Condition(
                        "place",
                        fits,
                        (f"farthest to the {side}", f"closest to the {side}"),
                        False,
                        (most,),
                    )
        off = np.maximum(abs(x - 0.5), abs(y - 0.5))
        middle = _clear(off < 0.14, off > 0.24)
        if middle[target] == 1:
            yield Condition(
                "place",
                middle,
                ("in the middle", "in the center", "in the centre"),
                False,
                ("middle",),
            )
        for name_y, v in (("top", y), ("bottom", 1 - y)):
            for name_x, u in (("left", x), ("right", 1 - x)):
                worst = np.maximum(u, v)
                fits = _clear(worst < 0.36, worst > 0.5)
                if fits[target] == 1:
                    said = (
                        f"at the {name_y} {name_x}",
                        f"in the {name_y} {name_x} corner",
                        f"in the {name_y} {name_x}",
                    )
                    yield Condition("place", fits, said, False, (name_y, name_x))

    def _orders(self, among: Fits, target: int) -> Iterator[Condition]:
        own = np.flatnonzero(among == 1)
        if not 2 <= len(own) <= 6:
            return
        x = self.centres[:, 0]
        order = own[np.argsort(x[own])]
        if np.diff(x[order]).min() < 0.07:
            return
        place = int(np.flatnonzero(order == target)[0])
        for rank, side in ((place, "left"), (len(own) - 1 - place, "right")):
            if rank < 4:
                fits = np.full(len(x), -1, np.int8)
                fits[target] = 1
                number = ("first", "second", "third", "fourth")[rank]
                yield Condition(
                    "order",
                    fits,
                    (f"{number}|from the {side}", f"{number}|counted from the {side}"),
                    True,
                    (number, side),
                )
        if len(own) == 3 and place == 1:
            fits = np.full(len(x), -1, np.int8)
            fits[target] = 1
            yield Condition("order", fits, ("middle",), True, ("middle",))

    def _looks(self, _among: Fits, target: int) -> Iterator[Condition]:
        looks = [thing.look for thing in self.things]
        words = {
            "flat": ("flat", "flat looking"),
            "3d": ("3d", "glossy", "shaded"),
            "outlined": ("outlined", "cartoon", "comic"),
        }
        if looks[target]:
            fits = np.array(
                [1 if look == looks[target] else -1 if look else 0 for look in looks], np.int8
            )
            yield Condition("look", fits, words[looks[target]], True, (looks[target],))

    def _nots(self, among: Fits, target: int) -> Iterator[Condition]:
        for other in np.flatnonzero(among == 1):
            if other != target:
                for part in (*self._colours(among, int(other)), *self._places(among, int(other))):
                    if part.fits[target] == -1 and not (part.before and part.form == "place"):
                        links = ("that is not", "that isn't", "not", "which is not")
                        short = [re.sub("^(that|which) is ", "", word) for word in part.words]
                        said = tuple(f"{link} {word}" for word in short for link in links)
                        yield Condition("not", -part.fits, said, False, ("not", *_of_another(part)))
                if among.max() == 1 and self.things[other].kind != self.things[target].kind:
                    noun = self.things[other].kind
                    fits = -self.noun(noun)
                    article = (
                        "" if noun in always_plural() else "an " if noun[0] in "aeiou" else "a "
                    )
                    said = (f"that is not {article}{noun}", f"that isn't {article}{noun}")
                    yield Condition("not", fits, said, False, ("not",), noun)

    def _relations(self, _among: Fits, target: int) -> Iterator[Condition]:
        for anchor, other in enumerate(self.things):
            if anchor == target:
                continue
            name = one(self.rng, kinds()[other.kind].names)
            fits = self.noun(name)
            concept: tuple[str, ...] = ()
            if (fits == 1).sum() > 1 or (fits == 0).any():
                named = list(self._colours(fits, anchor))
                if not named:
                    continue
                both = np.minimum(fits, named[0].fits)
                if (both == 1).sum() != 1 or (both == 0).any():
                    continue
                name, concept = f"{named[0].words[0]} {name}", _of_another(named[0])
            elif (fits == 1).sum() != 1:
                continue
            for words, relation, related in self._related(anchor):
                related[anchor] = -1
                if related[target] == 1:
                    said = tuple(
                        f"{link}{w} the {name}" for w in words for link in ("", "", "that is ")
                    )
                    yield Condition(
                        "relation", related, said, False, (relation, *concept), other.kind
                    )

    def _related(self, anchor: int) -> Iterator[tuple[tuple[str, ...], str, Fits]]:
        dx, dy = (self.centres - self.centres[anchor]).T
        boxes = np.array([thing.box for thing in self.things])
        origin = boxes[anchor]
        for words, name, lead, across, apart in (
            (("left of", "to the left of"), "left of", -dx, dy, origin[0] - boxes[:, 2]),
            (("right of", "to the right of"), "right of", dx, dy, boxes[:, 0] - origin[2]),
            (("above", "over", "higher than"), "above", -dy, dx, origin[1] - boxes[:, 3]),
            (("below", "under", "beneath", "lower than"), "below", dy, dx, boxes[:, 1] - origin[3]),
        ):
            clear = (lead > 0.12) & (lead > 1.2 * abs(across)) & (apart > -0.05)
            yield words, name, _clear(clear, lead < -0.03)
        gap_x = np.maximum(np.maximum(boxes[:, 0] - origin[2], origin[0] - boxes[:, 2]), 0)
        gap_y = np.maximum(np.maximum(boxes[:, 1] - origin[3], origin[1] - boxes[:, 3]), 0)
        gap = np.hypot(gap_x, gap_y)
        near = _clear(gap < 0.07, gap > 0.17)
        yield ("next to", "beside", "near", "by", "close to"), "next to", near
