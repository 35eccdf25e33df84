"""Scenes and expressions: deterministic, true, unambiguous and exactly undoable."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import pytest

from rism.evaluation.scenes.expressions import FORMS, Expression, make_expressions, pick_expression
from rism.evaluation.scenes.judged import judged_scene
from rism.evaluation.scenes.kinds import COLOUR_NAMES, COLOURS, KIND_NAMES, draw_sprite
from rism.evaluation.scenes.scene import SIZE_RANGES, Scene, SceneObject, make_scene

SCENES = 100


@lru_cache(maxsize=1)
def some_scenes() -> tuple[tuple[Scene, tuple[Expression, ...]], ...]:
    rng = np.random.default_rng(11)
    sizes = ((128, 128), (160, 128), (128, 160))
    scenes = [make_scene(rng, size_wh=sizes[number % 3]) for number in range(SCENES)]
    return tuple((scene, tuple(make_expressions(scene, rng))) for scene in scenes)


def of_form(*forms: str) -> Iterator[tuple[Scene, Expression]]:
    for scene, expressions in some_scenes():
        yield from ((scene, item) for item in expressions if item.form in forms)


def centre(item: SceneObject, scene: Scene) -> tuple[float, float]:
    x0, y0, x1, y1 = item.box_xyxy
    width, height = scene.size_wh
    return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def named(scene: Scene, words: list[str]) -> list[int]:
    """Objects that the colour and kind among the words fit, by brute force."""
    fits = range(len(scene.objects))
    for word in words:
        if word in COLOUR_NAMES:
            fits = [i for i in fits if scene.objects[i].colour == word]
        elif word in KIND_NAMES:
            fits = [i for i in fits if scene.objects[i].kind == word]
    return list(fits)


def test_sprites_are_tight_and_mostly_in_their_colour() -> None:
    colour = (10, 200, 90)
    for kind, size_px in product(KIND_NAMES, (28, 64)):
        sprite = draw_sprite(kind, colour, size_px=size_px)
        assert sprite.dtype == np.uint8 and sprite.shape[2] == 4
        assert size_px - 1 <= max(sprite.shape[:2]) <= size_px
        alpha = sprite[..., 3]
        assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])), kind
        solid = sprite[alpha == 255][:, :3].astype(np.float64)
        hue = solid / np.maximum(solid.max(axis=1, keepdims=True), 1.0)
        own = np.abs(hue - np.array(colour) / max(colour)).max(axis=1) < 0.08
        assert own.mean() > 0.55, kind
        flipped = draw_sprite(kind, colour, size_px=size_px, flip=True)
        assert np.array_equal(flipped[:, ::-1], sprite)


def test_silhouettes_differ() -> None:
    shapes = {}
    for kind in KIND_NAMES:
        alpha = draw_sprite(kind, COLOURS["red"][0], size_px=32)[..., 3] >= 128
        height, width = alpha.shape
        y, x = (32 - height) // 2, (32 - width) // 2
        shapes[kind] = np.pad(alpha, ((y, 32 - height - y), (x, 32 - width - x)))
    for first, second in combinations(KIND_NAMES, 2):
        a, b = shapes[first], shapes[second]
        assert (a & b).sum() / (a | b).sum() < 0.9, (first, second)


def test_bad_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown kind"):
        draw_sprite("dragon", (1, 2, 3), size_px=30)
    with pytest.raises(ValueError, match="64 pixels"):
        make_scene(rng, size_wh=(32, 128))


def test_same_seed_same_scene() -> None:
    (first, first_text), (second, second_text) = judged_scene(7), judged_scene(7)
    assert np.array_equal(first.image_hwc, second.image_hwc)
    assert first_text == second_text
    other, _ = judged_scene(7, split="tuning", size_wh=first.size_wh)
    assert not np.array_equal(other.image_hwc, first.image_hwc)


def test_held_out_sizes() -> None:
    sizes = {judged_scene(index)[0].size_wh for index in range(12)}
    assert len(sizes) > 8
    for width, height in sizes:
        assert min(width, height) >= 200 and max(width, height) <= 480
        assert 3 / 4 <= width / height <= 4 / 3
    assert judged_scene(0, size_wh=(512, 384))[0].image_hwc.shape == (384, 512, 3)


def test_objects_are_as_described() -> None:
    for scene, _ in some_scenes():
        width, height = scene.size_wh
        assert scene.image_hwc.dtype == np.uint8
        assert 2 <= len(scene.objects) <= 6
        for depth, item in enumerate(scene.objects):
            low, high = SIZE_RANGES[item.size_class]
            longer = max(item.sprite.shape[:2]) / np.sqrt(width * height)
            assert low - 0.01 <= longer <= high + 0.01
            assert item.depth == depth
            assert item.visible >= 0.6
            solid = item.sprite[..., 3] >= 128
            x, y = item.origin_xy
            inside = solid[max(-y, 0) : height - y, max(-x, 0) : width - x]
            assert inside.sum() >= 0.85 * solid.sum()
            rows, columns = np.nonzero(item.mask_hw)
            bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box_xyxy == bounds
    modes = Counter(scene.distractors for scene, _ in some_scenes())
    assert 0.45 < 1 - modes["none"] / SCENES < 0.75
    assert set(modes) == {"none", "colours", "places", "sizes", "kinds"}


def test_without_changes_only_the_object() -> None:
    for scene, _ in some_scenes()[:40]:
        for index, item in enumerate(scene.objects):
            removed = scene.without(index)
            changed = (removed != scene.image_hwc).any(axis=2)
            assert not (changed & ~item.mask_hw).any()
            assert changed.sum() > 0.8 * item.mask_hw.sum()
            if index == 0:  # nothing is below it
                others = np.any([other.mask_hw for other in scene.objects[1:]], axis=0)
                shown = (removed != scene.background).any(axis=2)
                assert not (shown & item.mask_hw & ~others).any()
    with pytest.raises(IndexError):
        some_scenes()[0][0].without(6)


def test_names_fit_exactly_one_object() -> None:
    for scene, item in of_form("kind", "colour"):
        assert item.text == item.text.lower()
        assert named(scene, item.text.split()) == [item.target], item


def test_places_fit_exactly_one_object() -> None:
    checked: Counter[str] = Counter()
    for scene, item in of_form("place"):
        words = item.text.replace("most", "").split()
        spot = {index: centre(scene.objects[index], scene) for index in named(scene, words)}
        x, y = spot.pop(item.target)
        sides = [word for word in words if word in ("left", "right", "top", "bottom")]
        if "middle" in words:
            assert max(abs(x - 0.5), abs(y - 0.5)) < 1 / 6
            assert all(max(abs(a - 0.5), abs(b - 0.5)) > 1 / 6 for a, b in spot.values())
        elif len(sides) == 1:
            axis = 0 if sides[0] in ("left", "right") else 1
            sign = 1.0 if sides[0] in ("left", "top") else -1.0
            assert sign * ((x, y)[axis] - 0.5) < 0
            assert all(sign * (o[axis] - (x, y)[axis]) >= 0.15 - 1e-9 for o in spot.values())
        else:
            quarter = (sides[1] == "right", sides[0] == "bottom")
            assert (x > 0.5, y > 0.5) == quarter
            assert quarter not in [(a > 0.5, b > 0.5) for a, b in spot.values()]
        checked["middle" if "middle" in words else str(len(sides))] += 1
    assert min(checked[key] for key in ("middle", "1", "2")) > 5


def test_sizes_fit_exactly_one_object() -> None:
    for scene, item in of_form("size"):
        words = item.text.split()
        longer = {i: max(scene.objects[i].sprite.shape[:2]) for i in named(scene, words)}
        own = longer.pop(item.target)
        if set(words) & {"small", "little", "smaller", "smallest"}:
            assert all(own * 1.1 < value for value in longer.values()), item
        else:
            assert all(own > value * 1.1 for value in longer.values()), item


def test_relations_hold_for_one_object_only() -> None:
    signs = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    seen: Counter[str] = Counter()
    for scene, item in of_form("relation"):
        relation = next(word for word in (*signs, "next to") if f" {word} " in item.text)
        head, _, tail = item.text.partition(f" {relation} ")
        (anchor,) = named(scene, tail.split())
        holds = named(scene, head.split())
        if relation in signs:
            axis, sign = signs[relation]
            at = centre(scene.objects[anchor], scene)[axis]
            holds = [i for i in holds if sign * (centre(scene.objects[i], scene)[axis] - at) > 0]
            assert holds == [item.target], item
        assert item.target in holds
        seen[relation] += 1
    assert all(seen[relation] > 5 for relation in (*signs, "next to"))


def test_drawn_forms_follow_the_weights() -> None:
    rng = np.random.default_rng(5)
    drawn = [pick_expression(scene, rng) for scene, each in some_scenes() * 3 if each]
    counts = Counter(item.form for item in drawn)
    assert len(drawn) > 0.95 * 3 * SCENES
    for form in FORMS:
        assert counts[form] / len(drawn) > 0.07, counts
    assert sum(item.needed for item in drawn) / len(drawn) > 0.4
    assert 0.1 < sum(not item.text.startswith("the ") for item in drawn) / len(drawn) < 0.3
