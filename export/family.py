"""What a model family declares about itself, readable without PyTorch.

Everything that differs between families stands in a `FamilySpec` or behind its functions; other
code iterates over `rism.export.families.FAMILIES` and never asks for a family by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rism.export.checkpoint.locate import Checkpoint
    from rism.export.denoising import Denoiser
    from rism.export.spec import OpenModel

Axis = float | str | tuple[str, float]
"""One rotary axis of a token's position: a number; "row" or "column" (image tokens) or "index"
(prompt tokens); or one of these names and what is added to it."""


FILE_PREFIX = "model.diffusion_model."
"""Some tools put this before every name in a transformer's file."""


@dataclass(frozen=True)
class MakersLayout:
    """The files of one model in a repository that is not in diffusers' layout.

    Attributes:
        pipeline: the model's entry in `FamilySpec.pipelines`.
        transformer: the transformer's file.
        others: further files of the repository.
        language: the repository of the text encoder.
    """

    pipeline: str
    transformer: str
    others: tuple[str, ...]
    language: str


@dataclass(frozen=True)
class PublishedModel:
    """A model of the hub that the command line knows by a short name.

    Attributes:
        name: the short name.
        repository: its id on the hub.
        licence: of the weights.
        makers: its files, where they are not in diffusers' layout.
    """

    name: str
    repository: str
    licence: str
    makers: MakersLayout | None = None

    @property
    def language_repository(self) -> str:
        """The repository that holds the text encoder."""
        return self.repository if self.makers is None else self.makers.language


@dataclass(frozen=True)
class RefinerSpec:
    """How a family's own text encoder rewords an instruction (`rism refine`).

    Attributes:
        model_type: of the text encoder, as its config.json has it.
        prompt: file with the system prompt.
    """

    model_type: str
    prompt: Path


@dataclass(frozen=True)
class FamilySpec:
    """A family of editing transformers with joint attention over [prompt; noisy; clean].

    Attributes:
        name: as in the manifest.
        title: as people write it, in messages.
        prompt_axes: rotary positions of the prompt's tokens; empty where they are an input.
        noisy_axes, clean_axes: rotary positions of the noisy and of the clean image's tokens.
        pipelines: names of the diffusers pipelines that hold such a model.
        owns: tells by its path and tensor names whether a transformer's file in the makers'
            layout belongs to the family.
        open: reads a checkpoint's configuration and headers; no weights.
        file_words: lower-case words that names of the makers' transformer files contain.
        unusable: endings of lower-case model, file or pipeline names of this family's models
            that the method cannot use, and why.
        published: models of the hub with a short name.
        refiner: None where the text encoder rewords nothing.
        denoiser: makes the whole model for the ablations from an opened checkpoint and its
            model_index.json; None where the family cannot be ablated.
    """

    name: str
    title: str
    prompt_axes: tuple[Axis, ...]
    noisy_axes: tuple[Axis, ...]
    clean_axes: tuple[Axis, ...]
    pipelines: tuple[str, ...]
    owns: Callable[[Path, Collection[str]], bool]
    open: Callable[[Checkpoint], OpenModel]
    file_words: tuple[str, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    published: tuple[PublishedModel, ...] = ()
    refiner: RefinerSpec | None = None
    denoiser: Callable[[Any, Mapping[str, Any]], Denoiser] | None = None
