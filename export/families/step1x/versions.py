"""Step1X-Edit's versions: everything that differs between them, as data.

Read off the published sources (stepfun-ai/Step1X-Edit; Peyton-Chen/diffusers, branches step1xedit
and step1xedit_v1p2).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rism.export.family import FILE_PREFIX, Axis, MakersLayout, PublishedModel

TEXTS = Path(__file__).parent / "texts"
_MARK = "connector.S.input_embedder.weight"


@dataclass(frozen=True)
class Version:
    """How one version differs from the others.

    Attributes:
        name: as its makers count.
        prompt_axes, clean_axes: rotary positions; none where the prompt's are an input.
        prefix: file with the text that stands before the instruction.
        image_first: whether the image comes between that text and the instruction.
        drop: tokens at the beginning that the transformer does not see.
        max_length: most tokens that it sees.
        padding: as `PromptRules` has it.
        vision_id: whether "Picture 1: " stands before the image.
        masks_attention: whether the token with id 0 is not attended to ("!", by an accident of
            the published code); its position is 1 in every version.
        flash: whether a token that is not attended to does not attend, either: flash attention
            leaves it out.
        quotes: the style of `QuoteRules`; where they begin to count, or None for the prefix's
            length.
        cells: least and most merged patches of the image.
        saved_cells: whether a processor that was saved with the model says so itself.
        align: as `VisionRules` has it.
        size_level: pixels of the image are about its square.
        resample, resize_in: how the VAE's image is made.
        view_resample: how the text encoder's is.
        arithmetic: as `VisionRules` has it.
        pipeline: its entry in `FamilySpec.pipelines`.
        published: its weights on the hub.
    """

    name: str
    prompt_axes: tuple[Axis, ...]
    clean_axes: tuple[Axis, ...]
    prefix: str
    image_first: bool
    drop: int
    max_length: int
    padding: str
    vision_id: bool
    masks_attention: bool
    flash: bool
    quotes: tuple[str, int | None]
    cells: tuple[int, int]
    saved_cells: bool
    align: bool
    size_level: int
    resample: str
    resize_in: str
    view_resample: str
    arithmetic: str
    pipeline: str
    published: PublishedModel


NOISY_AXES: tuple[Axis, ...] = (0.0, "row", "column")
_FIRST = Version(
    name="1.0",
    prompt_axes=(0.0, 0.0, 0.0),
    clean_axes=NOISY_AXES,
    prefix="prefix-1.0.txt",
    image_first=True,
    drop=217,
    max_length=640,
    padding="zeros",
    # The code asks for it, but the pinned release of transformers drops it (docs/step1x.md).
    vision_id=False,
    masks_attention=True,
    flash=True,
    quotes=("toggle", 156),
    cells=(256, 324),
    saved_cells=False,
    align=True,
    size_level=512,
    resample="bicubic",
    resize_in="uint8",
    view_resample="bicubic",
    arithmetic="pillow",
    # diffusers has no pipeline of it: a name of our own.
    pipeline="Step1XEdit",
    published=PublishedModel(
        "step1x",
        "stepfun-ai/Step1X-Edit",
        "Apache-2.0",
        MakersLayout(
            pipeline="Step1XEdit",
            transformer="step1x-edit-i1258.safetensors",
            others=("vae.safetensors",),
            language="Qwen/Qwen2.5-VL-7B-Instruct",
        ),
    ),
)
_SECOND = replace(
    _FIRST,
    name="1.1",
    clean_axes=(1.0, ("row", 1.0), ("column", 1.0)),
    vision_id=True,
    flash=False,
    saved_cells=True,
    size_level=1024,
    resample="lanczos",
    view_resample="lanczos",
    arithmetic="torchvision",
    pipeline="Step1XEditPipeline",
    published=PublishedModel("step1x-v1.1", "stepfun-ai/Step1X-Edit-v1p1-diffusers", "Apache-2.0"),
)
_THIRD = replace(
    _SECOND,
    name="1.2",
    prompt_axes=(),
    clean_axes=(1.0, "row", "column"),
    prefix="prefix-1.2.txt",
    image_first=False,
    drop=90,
    max_length=2048,
    padding="none",
    masks_attention=False,
    quotes=("paired", None),
    cells=(256, 400),
    saved_cells=False,
    align=False,
    resample="bilinear",
    resize_in="float32",
    pipeline="Step1XEditPipelineV1P2",
    published=PublishedModel("step1x-v1.2", "stepfun-ai/Step1X-Edit-v1p2", "Apache-2.0"),
)
VERSIONS = {version.name: version for version in (_FIRST, _SECOND, _THIRD)}


def version_of_file(file: Path, names: Collection[str]) -> str | None:
    """Tell the version of a transformer's file in the makers' layout; None if it is none.

    Only 1.0's connector has a scale factor, only 1.2 may have a mapping of quoted tokens.
    """
    if _MARK not in names and FILE_PREFIX + _MARK not in names:
        return None
    if any(name.endswith("connector.scale_factor") for name in names):
        return "1.0"
    if any("text_token_mapping." in name for name in names) or "v1p2" in file.name.lower():
        return "1.2"
    return "1.1"
