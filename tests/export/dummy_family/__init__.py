"""A model family that exists only here: what a new family needs, as small as it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rism.export.family import FamilySpec, PublishedModel

if TYPE_CHECKING:
    from rism.export.checkpoint.locate import Checkpoint
    from rism.export.spec import OpenModel

__all__ = ["FAMILY"]


def _open(checkpoint: Checkpoint) -> OpenModel:
    from tests.export.dummy_family.model import open_dummy

    return open_dummy(checkpoint)


FAMILY = FamilySpec(
    name="dummy",
    title="Dummy",
    prompt_axes=(0.0, "index"),
    noisy_axes=("row", "column"),
    clean_axes=(("row", 30.0), "column"),
    pipelines=("DummyEditPipeline",),
    owns=lambda _file, names: "image_in.weight" in names,
    open=_open,
    unusable={"-fast": "it has no attention"},
    file_words=("dummy",),
    published=(PublishedModel("dummy-edit", "nobody/Dummy-Edit", "CC0-1.0"),),
)
