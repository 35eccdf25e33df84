"""Sets of judged scenes: repeatable, apart from one another, and what their names say."""

from collections import Counter

import numpy as np
import pytest

from rism.evaluation.datasets.scenes import SceneSet
from rism.evaluation.names import SCENE_SETS
from rism.evaluation.scenes.judged import SPLITS, absent_expression, judged_scene
from rism.evaluation.scenes.kinds import COLOUR_NAMES, KIND_NAMES, draw_sprite
from rism.evaluation.scenes.ruffles import ruffle
from rism.runtime.errors import InputError


@pytest.mark.parametrize("kind", SCENE_SETS)
def test_a_number_names_a_scene_and_splits_share_none(kind: str) -> None:
    seen = set()
    for split in SPLITS:
        one, again = SceneSet(kind, split, 2), SceneSet(kind, split, 1)
        assert again.samples == one.samples[: len(again.samples)]
        for sample in one.samples:
            if sample.present:
                seen.add(one.image(sample).tobytes())
        first = one.samples[0]
        np.testing.assert_array_equal(one.image(first), again.image(first))
        np.testing.assert_array_equal(one.mask(first), again.mask(first))
    assert len(seen) == 4


def test_an_offset_keeps_numbers_and_a_seed_changes_scenes() -> None:
    whole = SceneSet("absent", "test", 4)
    assert SceneSet("absent", "test", 2, offset=2).samples == whole.samples[4:]
    other = SceneSet("absent", "test", 4, seed=1)
    assert [s.key for s in other.samples] == [s.key for s in whole.samples]
    drawn = {
        sets.image(sample).tobytes()
        for sets in (whole, other, SceneSet("absent", "test", 4, seed=2))
        for sample in sets.samples
    }
    assert len(drawn) == 12
    assert other.name == "scenes absent test seed 1"
    for wrong in ({"offset": -1}, {"seed": 2**32}):
        with pytest.raises(InputError, match="expected 0 to 4294967295"):
            SceneSet("plain", "test", 1, **wrong)


def test_plain_test_scenes_are_the_held_out_ones() -> None:
    scene, expression = judged_scene(3)
    plain = SceneSet("plain", "test", 4)
    assert plain.samples[3].expression == expression.text
    np.testing.assert_array_equal(plain.image(plain.samples[3]), scene.image_hwc)


def test_one_of_its_kind_needs_more_than_its_kind() -> None:
    for index in range(6):
        scene, expression = judged_scene(index, kind="same-kind", split="tuning")
        kinds = Counter(item.kind for item in scene.objects)
        assert kinds[scene.objects[expression.target].kind] in (2, 3)
        assert expression.needed


def test_what_is_absent_is_nowhere_in_the_picture() -> None:
    forms = Counter()
    for index in range(25):
        scene, _ = judged_scene(index, split="tuning")
        absent = absent_expression(scene, index, split="tuning")
        words = absent.text.split()
        (kind,) = (word for word in words if word in KIND_NAMES)
        colours = [word for word in words if word in COLOUR_NAMES]
        there = [item for item in scene.objects if item.kind == kind]
        assert bool(there) == (absent.form == "other colour"), absent.text
        assert not any(item.colour in colours for item in there), absent.text
        forms[absent.form] += 1
    assert set(forms) == {"other kind", "other colour"}


def test_absent_samples_have_empty_masks_and_present_ones_have_not() -> None:
    both = SceneSet("absent", "test", 3)
    assert [sample.present for sample in both.samples] == [True, False] * 3
    for sample in both.samples:
        mask = both.mask(sample)
        assert mask.shape == both.image(sample).shape[:2]
        assert mask.any() == sample.present


def test_ruffled_outlines_are_longer_and_the_thing_as_large() -> None:
    sprite = draw_sprite("ball", (200, 30, 30), size_px=160)
    ruffled = ruffle(sprite, np.random.default_rng(1))
    assert ruffled.shape == sprite.shape
    assert not ruffled.flags.writeable

    def solid(each: np.ndarray) -> np.ndarray:
        return np.asarray(each[..., 3] >= 128)

    def steps(mask: np.ndarray) -> int:
        return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())

    one, other = solid(sprite), solid(ruffled)
    assert steps(other) > 1.2 * steps(one)
    assert 0.85 < other.sum() / one.sum() < 1.1
    assert judged_scene(0, kind="fine")[0].size_wh in ((640, 480), (480, 640))


def test_other_sets_are_refused() -> None:
    with pytest.raises(InputError, match="scenes are 'round', expected one of plain, same-kind"):
        SceneSet("round", "test", 1)
    with pytest.raises(InputError, match="split is 'train', expected one of tuning, test"):
        SceneSet("plain", "train", 1)
    with pytest.raises(InputError, match="0 scenes were asked for"):
        SceneSet("plain", "test", 0)
