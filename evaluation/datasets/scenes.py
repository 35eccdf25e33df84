"""Generated scenes as a dataset: `rism eval scenes`."""

from collections.abc import Sequence
from functools import lru_cache

from rism.evaluation.datasets.sample import Image, Mask, Problem, Sample
from rism.evaluation.names import SCENE_SETS, SceneSetName
from rism.evaluation.scenes.expressions import Expression
from rism.evaluation.scenes.judged import SPLITS, Split, absent_expression, judged_scene
from rism.evaluation.scenes.scene import Scene
from rism.runtime.errors import InputError


class SceneSet:
    """Drawn scenes that are never trained on; implements `Dataset`.

    Every image of the set "absent" has two samples, one of a present and one of an absent object.
    """

    def __init__(
        self,
        kind: str = "plain",
        split: str = "test",
        count: int = 500,
        *,
        offset: int = 0,
        seed: int = 0,
    ) -> None:
        """Choose a set, see `judged_scene`, and of it `count` scenes from number `offset` on.

        Raises:
            InputError: no such set or split, no scenes, or a negative offset or seed.
        """
        if kind not in SCENE_SETS:
            raise InputError(f"scenes are '{kind}', expected one of {', '.join(SCENE_SETS)}")
        if split not in SPLITS:
            raise InputError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
        if count < 1:
            raise InputError(f"{count} scenes were asked for, expected at least 1")
        for name, value in (("--offset", offset), ("--seed", seed)):
            if not 0 <= value < 2**32:
                raise InputError(f"{name} is {value}, expected 0 to {2**32 - 1}")
        self._seed = seed
        self._kind: SceneSetName = next(each for each in SCENE_SETS if each == kind)
        self._split: Split = next(each for each in SPLITS if each == split)
        self._scene = lru_cache(maxsize=4)(self._draw)
        self.name = f"scenes {kind} {split}"
        self.name += (f" seed {seed}" if seed else "") + (f" from {offset}" if offset else "")
        self.notes: Sequence[str] = ("drawn scenes: they say nothing of photographs",)
        self.problems: Sequence[Problem] = ()
        self.samples: Sequence[Sample] = [
            s for i in range(offset, offset + count) for s in self._of(i)
        ]

    def image(self, sample: Sample) -> Image:
        """Draw a sample's image; see `Dataset`."""
        return self._scene(int(sample.image))[0].image_hwc

    def mask(self, sample: Sample) -> Mask:
        """Give a sample's true mask; see `Dataset`."""
        scene, expression = self._scene(int(sample.image))
        true_hw = scene.objects[expression.target].mask_hw
        return true_hw if sample.present else true_hw & False

    def _draw(self, index: int) -> tuple[Scene, Expression]:
        return judged_scene(index, kind=self._kind, split=self._split, seed=self._seed)

    def _of(self, index: int) -> list[Sample]:
        scene, expression = self._scene(index)
        found = [Sample(str(index), str(index), expression.text, expression.form)]
        if self._kind == "absent":
            absent = absent_expression(scene, index, split=self._split, seed=self._seed)
            key = f"{index}:absent"
            found.append(Sample(key, str(index), absent.text, absent.form, present=False))
        return found
