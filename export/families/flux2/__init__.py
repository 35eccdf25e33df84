"""FLUX.2-klein."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rism.export.family import FILE_PREFIX, FamilySpec, PublishedModel

if TYPE_CHECKING:
    from rism.export.checkpoint.locate import Checkpoint
    from rism.export.denoising import Denoiser
    from rism.export.spec import OpenModel

__all__ = ["FAMILY"]

_MARK = "single_stream_modulation.lin.weight"
_OWN_ATTENTION = (
    "its image tokens attend only to themselves, so there is no attention from the image to the "
    "prompt to read: use FLUX.2-klein-9B"
)


def _owns(_file: Path, names: Collection[str]) -> bool:
    """Tell whether a file holds a FLUX.2 transformer in its makers' layout."""
    return _MARK in names or FILE_PREFIX + _MARK in names


def _open(checkpoint: Checkpoint) -> OpenModel:
    from rism.export.families.flux2.klein import open_klein

    return open_klein(checkpoint)


def _denoiser(model: Any, index: Mapping[str, Any]) -> Denoiser:
    from rism.export.families.flux2.denoiser import klein_denoiser

    return klein_denoiser(model, index)


def _published(size: str, licence: str) -> PublishedModel:
    name = f"FLUX.2-klein-{size}"
    return PublishedModel(name.lower().replace(".", ""), f"black-forest-labs/{name}", licence)


FAMILY = FamilySpec(
    name="flux2-klein",
    title="FLUX.2-klein",
    prompt_axes=(0.0, 0.0, 0.0, "index"),
    noisy_axes=(0.0, "row", "column", 0.0),
    clean_axes=(10.0, "row", "column", 0.0),
    pipelines=("Flux2KleinPipeline",),
    owns=_owns,
    open=_open,
    file_words=("klein",),
    unusable={"-kv": _OWN_ATTENTION, "kvpipeline": _OWN_ATTENTION},
    published=tuple(
        _published(size, licence)
        for size, licence in (
            ("4B", "Apache-2.0"),
            ("9B", "FLUX Non-Commercial License"),
            ("base-4B", "Apache-2.0"),
            ("base-9B", "FLUX Non-Commercial License"),
        )
    ),
    denoiser=_denoiser,
)
