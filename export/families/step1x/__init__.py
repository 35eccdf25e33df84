"""Step1X-Edit 1.0, 1.1 and 1.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rism.export.families.step1x.versions import (
    NOISY_AXES,
    TEXTS,
    VERSIONS,
    Version,
    version_of_file,
)
from rism.export.family import FamilySpec, RefinerSpec

if TYPE_CHECKING:
    from rism.export.checkpoint.locate import Checkpoint
    from rism.export.denoising import Denoiser
    from rism.export.spec import OpenModel

__all__ = ["FAMILIES"]


def _denoiser(model: Any, _index: Mapping[str, Any]) -> Denoiser:
    from rism.export.families.step1x.denoiser import step1x_denoiser

    return step1x_denoiser(model)


def _family(version: Version) -> FamilySpec:
    def open_checkpoint(checkpoint: Checkpoint) -> OpenModel:
        from rism.export.families.step1x.model import open_step1x

        return open_step1x(version, checkpoint)

    return FamilySpec(
        name="step1x-edit",
        title="Step1X-Edit",
        prompt_axes=version.prompt_axes,
        noisy_axes=NOISY_AXES,
        clean_axes=version.clean_axes,
        pipelines=(version.pipeline,),
        owns=lambda file, names: version_of_file(file, names) == version.name,
        open=open_checkpoint,
        file_words=("step1x",),
        published=(version.published,),
        refiner=RefinerSpec("qwen2_5_vl", TEXTS / "refiner.txt"),
        denoiser=_denoiser,
    )


FAMILIES = {name: _family(version) for name, version in VERSIONS.items()}
"""By version."""
