"""How a dataclass of flags becomes a command, and the flags that commands share.

A field that is annotated with `typer.Option` or `typer.Argument` is a flag; another field is a
plain default, which a subclass may turn into a flag. Nothing heavy is imported, so that `--help`
stays quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rism.cli.console import Console
from rism.runtime.engines.providers import PROVIDERS, parse_provider
from rism.runtime.names import CaptureName, EnginePrecision, TokenSet, UpsamplingMethod

if TYPE_CHECKING:
    from rism.runtime.options import SegmentOptions
    from rism.runtime.prompt.refiner import Refiner
    from rism.runtime.segmenter import Segmenter

BUNDLE_HELP = (
    "A folder that rism export wrote, or a bundle's hub id, OWNER/NAME[@REVISION]; an existing "
    "folder takes precedence. Default: mini, the built-in bundle; for a folder of that name write "
    "./mini."
)


_PROVIDERS = [
    each.name if each.name == each.label else f"{each.name} ({each.label})"
    for each in reversed(PROVIDERS.values())
]


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a function that takes one dataclass of flags and the console."""
    flags = get_type_hints(function)["flags"]

    def command(**given: Any) -> None:
        found = flags(**given)
        console = Console(quiet=found.quiet, verbose=found.verbose)
        with console.reporting():
            function(found, console)

    hints, defaults = get_type_hints(flags, include_extras=True), _defaults(flags)
    # Own flags come first in --help, then those of the parent classes.
    names = [name for each in flags.__mro__ for name in inspect.get_annotations(each)]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[name], default=defaults[name]
            )
            for name in dict.fromkeys(names)
            if hasattr(hints[name], "__metadata__")
        ]
    )
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def _defaults(flags: Any) -> dict[str, Any]:
    """Return the default of each flag; a parameter's mark for none where it is required."""
    return {
        each.name: inspect.Parameter.empty if each.default is MISSING else each.default
        for each in fields(flags)
    }


def flags_set(flags: CommandFlags, names: Iterable[str]) -> list[str]:
    """Return those of the named flags that differ from their defaults, as they are typed."""
    defaults = _defaults(flags)
    return [
        f"--{name.replace('_', '-')}" for name in names if getattr(flags, name) != defaults[name]
    ]


def expecting(what: str, fits: Callable[[float], bool]) -> Callable[[float | None], float | None]:
    """Make a callback that checks bounds typer cannot express: open ones, and no NaN."""

    def check(value: float | None) -> float | None:
        if value is not None and not fits(value):
            raise typer.BadParameter(f"{value:g}, expected {what}")
        return value

    return check


def in_utf_8(text: str | None) -> str | None:
    """Read a text as UTF-8 in any locale: a flag's callback."""
    from rism.cli.file_names import as_text
    from rism.runtime.errors import InputError

    try:
        return None if text is None else as_text(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _provider(text: str) -> str:
    from rism.runtime.errors import InputError

    try:
        parse_provider(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


Tau = Annotated[
    float | None,
    typer.Option(
        callback=expecting("0 to below 1, such as 0.8", lambda tau: 0 <= tau < 1),
        help="Region threshold, 0 to below 1. Default: the bundle's.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        callback=in_utf_8,
        help="The instruction, such as 'segment {expression}'. Default: the bundle's; for a "
        "checkpoint 'remove {expression}'.",
    ),
]
Instructions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Use reworded instructions that rism refine wrote."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all.")]


@dataclass(frozen=True, kw_only=True)
class CommandFlags:
    """The flags of every command."""

    quiet: bool = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print more, and where an error occurred.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class QuietFlags(CommandFlags):
    """The flags of a command that can be silenced."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False


@dataclass(frozen=True, kw_only=True)
class ImageFlags(CommandFlags):
    """Flags that say which images are read and what is searched for in them."""

    expressions: Annotated[
        list[str] | None,
        typer.Option(
            "--expression",
            "-e",
            metavar="TEXT",
            help="What to find; repeatable. All arguments are then images.",
        ),
    ] = None
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            help="Read folders inside folders, too; the names of results keep them.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags(CommandFlags):
    """Flags of commands that read a checkpoint of the model hub."""

    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of the hub repository.")
    ] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only files that are already on this machine.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EngineFlags(CommandFlags):
    """Flags that say what runs a bundle's graphs."""

    provider: Annotated[
        str,
        typer.Option(
            metavar="PROVIDER",
            callback=_provider,
            help=f"auto, {', '.join(_PROVIDERS)}; tensorrt-rtx+onnxruntime-cuda runs the graphs "
            "that the first has no engine for on the second.",
        ),
    ] = "auto"
    device: Annotated[int, typer.Option(min=0, help="Index of the GPU.")] = 0
    engine: Annotated[
        str | None, typer.Option(help="Name of an engine of the bundle; rism inspect lists them.")
    ] = None
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class SegmenterFlags(EngineFlags):
    """Flags of a segmenter and of its method, for `rism run` and `rism eval`."""

    bundle: Annotated[str | None, typer.Option(help=BUNDLE_HELP)] = None
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(help="Precision to compute in. Default: any that is available."),
    ] = None
    capture: Annotated[
        CaptureName | None, typer.Option(help="Transformer graph to use. Default: the bundle's.")
    ] = None
    template: Template = None
    instructions: Instructions = None
    tau: Tau = None
    tokens: Annotated[
        TokenSet | None,
        typer.Option(help="Prompt tokens whose attention counts. Default: all, with padding."),
    ] = None
    magnets: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            callback=in_utf_8,
            help="Append these words to the prompt to absorb stray attention; their tokens are "
            "ignored.",
        ),
    ] = None
    sinks: Annotated[
        bool,
        typer.Option(
            "--sinks",
            help="Detect attention-sink tokens and rerun with their weight set to 0; needs a "
            "bundle exported with --token-attention.",
        ),
    ] = False
    upsample: Annotated[
        UpsamplingMethod | None,
        typer.Option(
            help="How the mask reaches the size of the image: guided follows the edges of the "
            "image. Default: guided."
        ),
    ] = None
    spatial_prior: Annotated[
        bool | None,
        typer.Option(
            "--spatial-prior/--no-spatial-prior",
            help="Use words of place such as 'left' and 'top'. Default: on.",
        ),
    ] = None
    instances: Annotated[
        bool | None,
        typer.Option(
            "--instances/--no-instances",
            help="Of several regions, keep the one that words of place and size mean. Default: on.",
        ),
    ] = None
    confidence: Annotated[
        float | None,
        typer.Option(
            callback=expecting("0 to 1, such as 0.5", lambda least: 0 <= least <= 1),
            help="Return an empty mask below this confidence. Default: the bundle's threshold.",
        ),
    ] = None
    always: Annotated[
        bool, typer.Option("--always", help="Return a mask even at low confidence.")
    ] = False
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="Use the published method only: disables contours, spatial prior, instance choice "
            "and rejection.",
        ),
    ] = False

    @property
    def options(self) -> SegmentOptions:
        """The keyword arguments of `Segmenter.segment` that were set."""
        from rism.runtime.options import drop_unset

        return drop_unset(
            tau=self.tau,
            prompt_weights=self.tokens,
            magnets=self.magnets,
            sinks=self.sinks or None,
            upsample=self.upsample,
            spatial_prior=self.spatial_prior,
            instances=self.instances,
            confidence=self.confidence,
            always=self.always or None,
            paper=self.paper or None,
        )

    def load(
        self,
        console: Console,
        refiner: Refiner | None,
        *,
        bundle: str | Path | None,
        cache_dir: str | None = None,
        max_batch: int = 8,
        workers: int = 1,
    ) -> Segmenter:
        """Open a bundle and load its graphs; see `Segmenter.from_bundle`."""
        from rism.runtime.segmenter import Segmenter

        console.status(f"loading {bundle or 'mini'} ...")
        segmenter = Segmenter.from_bundle(
            bundle,
            provider=self.provider,
            device=self.device,
            precision=self.precision,
            engine=self.engine,
            capture=self.capture,
            threads=self.threads,
            template=self.template,
            refiner=refiner,
            warn=console.detail,
            cache_dir=cache_dir,
            max_batch=max_batch,
            workers=workers,
        )
        console.clear()
        model = segmenter.manifest.model
        console.detail(
            f"{model.name} ({model.licence}) from {segmenter.bundle.path}, capture "
            f"{segmenter.capture}, provider {segmenter.provider}: {segmenter.provider_reason}"
        )
        return segmenter
