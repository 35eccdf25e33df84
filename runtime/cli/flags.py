"""Flags that commands share, and what a flag can be set to.

Only typer is imported here, as in app.py.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "BUNDLE_HELP",
    "Always",
    "CalibrationRule",
    "Capture",
    "Confidence",
    "Device",
    "EngineName",
    "EnginePrecision",
    "ExportPrecision",
    "Expressions",
    "GtMerge",
    "Instances",
    "Magnets",
    "Paper",
    "Parity",
    "Provider",
    "Quiet",
    "Recursive",
    "RefinePrecision",
    "RunProvider",
    "SceneKind",
    "Sinks",
    "SpatialPrior",
    "SplitBy",
    "Target",
    "Tau",
    "Template",
    "Threads",
    "Tokens",
    "TritonDevice",
    "Upsample",
    "UpsampleChoice",
    "Verbose",
    "Wording",
    "Workers",
    "expecting",
    "in_utf_8",
]


BUNDLE_HELP = (
    "A folder that rism export wrote, or a bundle's hub id, owner/name[@revision]; what exists as "
    "a folder wins. Left out, or mini: the built-in bundle; a folder of that name is ./mini."
)


class Provider(StrEnum):
    """What a refiner can run on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EnginePrecision(StrEnum):
    """What an engine of a bundle can compute in; rism.runtime.bundle.engine_spec."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    fp8 = "fp8"


class Tokens(StrEnum):
    """Prompt tokens whose attention counts; docs/bundle.md, step 5."""

    all = "all"
    valid = "valid"
    instruction = "instruction"
    expression = "expression"
    content = "content"
    head = "head"


class Upsample(StrEnum):
    """How a mask is brought to the picture's size; rism.runtime.options."""

    guided = "guided"
    bilinear = "bilinear"


class Capture(StrEnum):
    """What the transformer's graph gives; docs/bundle.md, step 5."""

    vectors = "vectors"
    matrices = "matrices"
    scores = "scores"


class ExportPrecision(StrEnum):
    """What a bundle's graphs compute in; rism.export.precision."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Target(StrEnum):
    """Libraries that engines are built for; rism.export.engines.targets."""

    rtx = "tensorrt-rtx"
    tensorrt = "tensorrt"


class RefinePrecision(StrEnum):
    """What a refiner computes in; rism.export.refiner.refine."""

    bf16 = "bf16"
    fp32 = "fp32"


class TritonDevice(StrEnum):
    """Where a server's models run; rism.export.triton."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


class CalibrationRule(StrEnum):
    """How FP8 scales are chosen; rism.calibration.ranges."""

    max = "max"
    percentile = "percentile"
    mask = "mask"


class Parity(StrEnum):
    """How much of a model is compared with PyTorch."""

    auto = "auto"
    full = "full"
    blocks = "blocks"


class SplitBy(StrEnum):
    """Who divided a dataset into splits; docs/datasets.md."""

    unc = "unc"
    umd = "umd"
    google = "google"


class GtMerge(StrEnum):
    """How several polygons become one true mask; docs/datasets.md."""

    legacy = "legacy"
    union = "union"


class Wording(StrEnum):
    """Which form of its sentences REFER asks with; docs/datasets.md."""

    raw = "raw"
    sent = "sent"


class SceneKind(StrEnum):
    """Generated scenes; rism.evaluation.scenes."""

    plain = "plain"
    same_kind = "same-kind"
    fine = "fine"
    absent = "absent"


def expecting(what: str, fits: Callable[[float], bool]) -> Callable[[float | None], float | None]:
    """Make a flag's callback for bounds that typer cannot say: open ones, and no NaN."""

    def check(value: float | None) -> float | None:
        if value is not None and not fits(value):
            raise typer.BadParameter(f"{value:g}, expected {what}")
        return value

    return check


def in_utf_8(text: str | None) -> str | None:
    """Read a text as UTF-8, in whatever locale it was typed: a flag's callback."""
    from rism.runtime.cli.names import as_text
    from rism.runtime.errors import InputError

    try:
        return None if text is None else as_text(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


Expressions = Annotated[
    list[str] | None,
    typer.Option(
        "--expression",
        "-e",
        metavar="TEXT",
        help="What to find, again for each text; all arguments are images then.",
    ),
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", "-r", help="Take folders in folders, too; names keep them."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more, and where an error came from.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Pictures of a folder to work on at once, 1 for one after the other; they share "
        "the threads. Left out: one for each thread, up to 4.",
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(
        callback=expecting("0 to below 1, such as 0.8", lambda tau: 0 <= tau < 1),
        help="Region threshold, 0 to below 1; the bundle has a default.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        callback=in_utf_8,
        help="The instruction, such as 'segment {expression}'; the bundle has one.",
    ),
]
Magnets = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        callback=in_utf_8,
        help="Say these words after the instruction, to take stray attention, and leave them out.",
    ),
]
Sinks = Annotated[
    bool,
    typer.Option(
        "--sinks",
        help="Find tokens that all of the picture looks at, and run again without them; for "
        "bundles with --token-attention.",
    ),
]
UpsampleChoice = Annotated[
    Upsample | None,
    typer.Option("--upsample", help="Contours along the picture's edges (guided) or bilinear."),
]
SpatialPrior = Annotated[
    bool | None,
    typer.Option(
        "--spatial-prior/--no-spatial-prior", help="Let words such as 'left' and 'top' count."
    ),
]
Instances = Annotated[
    bool | None,
    typer.Option(
        "--instances/--no-instances", help="Keep the one of several parts that the words mean."
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        callback=expecting("0 to 1, such as 0.5", lambda least: 0 <= least <= 1),
        help="Answer with an empty mask where the confidence is below; the bundle has a default.",
    ),
]
Always = Annotated[
    bool,
    typer.Option("--always", help="Answer with a mask even where nothing seems to fit."),
]
Paper = Annotated[
    bool, typer.Option("--paper", help="The published method to the letter: none of the above.")
]


def _provider(text: str) -> str:
    from rism.runtime.engines.providers import parse_provider
    from rism.runtime.errors import InputError

    try:
        parse_provider(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


RunProvider = Annotated[
    str,
    typer.Option(
        metavar="PROVIDER",
        callback=_provider,
        help="auto, onnxruntime-cpu (cpu), onnxruntime-cuda (cuda), onnxruntime-tensorrt-rtx "
        "(rtx), tensorrt-rtx, tensorrt; tensorrt-rtx+onnxruntime-cuda runs graphs that the first "
        "does not have on the second.",
    ),
]
Device = Annotated[int, typer.Option(min=0, help="Number of the GPU.")]
EngineName = Annotated[
    str | None, typer.Option(help="An engine of the bundle by name; rism inspect lists them.")
]
