"""Scenes of sprites: the same for a seed, with exact masks, and apart by split."""

import numpy as np
import pytest

from mini.colours import COLOUR_NAMES, colour_shares
from mini.scenes import LARGEST, SceneMaker

SIZE = (160, 128)


def test_a_seed_gives_one_scene(stage: SceneMaker) -> None:
    first, again = (stage.scene((3, 1), split="training", size_wh=SIZE) for _ in range(2))
    assert np.array_equal(first.image_hwc, again.image_hwc)
    assert [thing.kind for thing in first.things] == [thing.kind for thing in again.things]
    for other in ("tuning", "test", "held-out"):
        scene = stage.scene((3, 1), split=other, size_wh=SIZE)
        assert not np.array_equal(first.image_hwc, scene.image_hwc)


def test_masks_are_exact(stage: SceneMaker) -> None:
    for index in range(30):
        scene = stage.scene((index,), split="test", size_wh=SIZE)
        assert 1 <= len(scene.things) <= 8
        assert sum(thing.mask_hw.astype(int) for thing in scene.things).max() == 1
        for number, thing in enumerate(scene.things):
            assert thing.visible >= 0.6
            assert thing.side <= LARGEST
            x0, y0, x1, y1 = thing.box
            rows, columns = np.nonzero(thing.mask_hw)
            assert (columns.min(), columns.max() + 1) == (round(x0 * 160), round(x1 * 160))
            assert (rows.min(), rows.max() + 1) == (round(y0 * 128), round(y1 * 128))
            if not scene.finish.blur and not scene.finish.quality:
                changed = (scene.image_hwc != scene.without((number,))).any(-1)
                # A soft rim outside of the mask changes too.
                assert changed[thing.mask_hw].mean() > 0.7
                assert (changed & ~thing.mask_hw).sum() < 0.5 * thing.mask_hw.sum() + 200


def test_held_out_scenes_have_their_own_styles(stage: SceneMaker) -> None:
    looks = {True: set(), False: set()}
    for index in range(60):
        for held in looks:
            split = "held-out" if held else "test"
            for thing in stage.scene((index,), split=split, size_wh=(64, 64)).things:
                looks[held].add(thing.style)
    assert not looks[True] & looks[False]


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("red", (220, 40, 40)), ("orange", (250, 140, 20)), ("yellow", (250, 220, 40)),
        ("green", (60, 170, 70)), ("blue", (40, 90, 220)), ("purple", (130, 50, 180)),
        ("pink", (250, 130, 190)), ("brown", (120, 75, 40)), ("black", (20, 20, 22)),
        ("white", (245, 245, 242)), ("grey", (130, 132, 130)),
    ],
)  # fmt: skip
def test_colours_have_their_names(name: str, rgb: tuple[int, int, int]) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[..., :3] = rgb
    assert colour_shares(pixels)[COLOUR_NAMES.index(name)] == 1
