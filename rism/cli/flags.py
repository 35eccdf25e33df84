"""How a dataclass of flags becomes a command, and the flags that commands share.

A field made by `option` or `argument` is a flag; another field is a plain default, which a
subclass may turn into a flag. Nothing heavy is imported, so that `--help` stays quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from rism.cli.console import Console
from rism.runtime.engines.providers import PROVIDERS, parse_provider
from rism.runtime.names import CaptureName, EnginePrecision, TokenSet, UpsamplingMethod

if TYPE_CHECKING:
    from rism.runtime.options import SegmentOptions
    from rism.runtime.prompt.refiner import Refiner
    from rism.runtime.segmenter import Segmenter

T = TypeVar("T")
BUNDLE_HELP = (
    "A folder that rism export wrote, or a bundle's hub id, OWNER/NAME[@REVISION]; an existing "
    "folder takes precedence. Default: mini, the built-in bundle; for a folder of that name write "
    "./mini."
)


_PROVIDERS = [
    each.name if each.name == each.label else f"{each.name} ({each.label})"
    for each in reversed(PROVIDERS.values())
]


def option(default: Any, *names: str, **settings: Any) -> Any:
    """Make a field of an option; `...` stands for no default, and switches have no `--no-`.

    Settings are those of `click.Option`, the bounds `min` and `max` of a number, and a callback
    that takes the value and returns it.
    """
    return _flag(click.Option, default, names, settings)


def argument(default: Any, **settings: Any) -> Any:
    """Make a field of an argument; `...` stands for no default."""
    return _flag(click.Argument, default, (), settings)


def _flag(
    kind: type[click.Parameter], default: Any, names: tuple[str, ...], settings: dict[str, Any]
) -> Any:
    return field(
        default=MISSING if default is ... else default, metadata={"flag": (kind, names, settings)}
    )


def as_command(name: str, function: Callable[..., None]) -> click.Command:
    """Make a command of a function that takes one dataclass of flags and the console."""
    flags = get_type_hints(function)["flags"]

    def command(**given: Any) -> None:
        found = flags(**given)
        console = Console(quiet=found.quiet, verbose=found.verbose)
        with console.reporting():
            function(found, console)

    hints = get_type_hints(flags)
    own: dict[str, Field[Any]] = {}
    # Own flags come first in --help, then those of the parent classes.
    for each in flags.__mro__:
        for key in inspect.get_annotations(each):
            own.setdefault(key, each.__dataclass_fields__[key])
    return click.Command(
        name,
        callback=command,
        params=[
            _parameter(key, hints[key], flag)
            for key, flag in own.items()
            if "flag" in flag.metadata
        ],
        help=function.__doc__,
        short_help=(function.__doc__ or "").strip(),  # click would cut the sentence of a help
    )


def _parameter(name: str, hint: Any, flag: Field[Any]) -> click.Parameter:
    """Return click's parameter of a field with a type hint: what it is called, reads and checks."""
    kind, names, settings = flag.metadata["flag"]
    settings = dict(settings)
    if get_origin(hint) in (Union, UnionType):
        [hint] = [each for each in get_args(hint) if each is not type(None)]
    several = get_origin(hint) is list
    if several:
        [hint] = get_args(hint)
    if flag.default is MISSING:
        settings["required"] = True
    elif not several:
        settings["default"] = flag.default
    check = settings.pop("callback", None)

    def checked(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if several:
            value = list(value) or None
        return value if check is None else check(value)

    settings["callback"] = checked
    if kind is click.Argument:
        if several:
            settings["metavar"] += "..."
        return click.Argument([name], type=_type(hint, settings), nargs=-several or 1, **settings)
    if hint is bool:
        settings["is_flag"] = True
    else:
        settings |= {"type": _type(hint, settings), "multiple": several, "show_default": True}
    return click.Option([name, *(names or (f"--{name.replace('_', '-')}",))], **settings)


class _FloatRange(click.FloatRange):
    """A range without NaN, which is neither below nor above any bound."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is not a number.", param, ctx)
        return found


def _type(hint: Any, settings: dict[str, Any]) -> click.ParamType[Any] | type:
    """Return what reads a value of a type, and take its bounds from the settings."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if hint is Path:
        return click.Path(path_type=Path)
    bounds = {key: settings.pop(key) for key in ("min", "max") if key in settings}
    if bounds:
        return click.IntRange(**bounds) if hint is int else _FloatRange(**bounds)
    return hint  # type: ignore[no-any-return]


def same_named(kind: Callable[..., T], flags: CommandFlags, /, **others: Any) -> T:
    """Call `kind` with the flags that are named as its arguments, and with the others."""
    names = [name for name in inspect.signature(kind).parameters if hasattr(flags, name)]
    return kind(**({name: getattr(flags, name) for name in names} | others))


def flags_set(flags: CommandFlags, names: Iterable[str]) -> list[str]:
    """Return those of the named flags that differ from their defaults, as they are typed."""
    defaults = {each.name: each.default for each in fields(flags)}
    return [
        f"--{name.replace('_', '-')}" for name in names if getattr(flags, name) != defaults[name]
    ]


def expecting(what: str, fits: Callable[[float], bool]) -> Callable[[float | None], float | None]:
    """Make a callback that checks bounds click cannot express: open ones, and no NaN."""

    def check(value: float | None) -> float | None:
        if value is not None and not fits(value):
            raise click.BadParameter(f"{value:g}, expected {what}")
        return value

    return check


def in_utf_8(text: str | None) -> str | None:
    """Read a text as UTF-8 in any locale: a flag's callback."""
    from rism.cli.file_names import as_text
    from rism.runtime.errors import InputError

    try:
        return None if text is None else as_text(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def _provider(text: str) -> str:
    from rism.runtime.errors import InputError

    try:
        parse_provider(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _memory(text: str | None) -> str | None:
    from rism.runtime.engines.memory import TURNS, parse_memory
    from rism.runtime.errors import InputError

    try:
        if text not in (None, TURNS):
            parse_memory(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None
    return text


tau_option = partial(
    option,
    None,
    callback=expecting("0 to below 1, such as 0.8", lambda tau: 0 <= tau < 1),
    help="Region threshold, 0 to below 1. Default: the bundle's.",
)
template_option = partial(
    option,
    None,
    callback=in_utf_8,
    help="The instruction, such as 'segment {expression}'. Default: the bundle's; for a "
    "checkpoint 'remove {expression}'.",
)
instructions_option = partial(
    option, None, metavar="FILE", help="Use reworded instructions that rism refine wrote."
)
memory_option = partial(
    option,
    None,
    metavar="SIZE|auto|turns",
    callback=_memory,
    help="Stay within this much memory, such as 8GiB: of the process on a CPU, of the graphs on a "
    "GPU. Graphs are loaded when their turn comes, a few blocks at a time if need be. auto: what "
    "is free. turns: each graph leaves when the next one comes. Default: everything stays loaded.",
)
threads_option = partial(option, None, min=1, help="CPU threads. Default: all.")


@dataclass(frozen=True, kw_only=True)
class CommandFlags:
    """The flags of every command."""

    quiet: bool = False
    verbose: bool = option(
        False, "--verbose", "-v", help="Print more, and where an error occurred."
    )


@dataclass(frozen=True, kw_only=True)
class QuietFlags(CommandFlags):
    """The flags of a command that can be silenced."""

    quiet: bool = option(False, "--quiet", "-q", help="Print errors only.")


@dataclass(frozen=True, kw_only=True)
class ImageFlags(CommandFlags):
    """Flags that say which images are read and what is searched for in them."""

    expressions: list[str] | None = option(
        None,
        "--expression",
        "-e",
        metavar="TEXT",
        help="What to find; repeatable. All arguments are then images.",
    )
    recursive: bool = option(
        False,
        "--recursive",
        "-r",
        help="Read folders inside folders, too; the names of results keep them.",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags(CommandFlags):
    """Flags of commands that read a checkpoint of the model hub."""

    revision: str | None = option(None, help="A branch, tag or commit of the hub repository.")
    offline: bool = option(False, help="Use only files that are already on this machine.")


@dataclass(frozen=True, kw_only=True)
class EngineFlags(CommandFlags):
    """Flags that say what runs a bundle's graphs."""

    provider: str = option(
        "auto",
        metavar="PROVIDER",
        callback=_provider,
        help=f"auto, {', '.join(_PROVIDERS)}; tensorrt-rtx+onnxruntime-cuda runs the graphs "
        "that the first has no engine for on the second.",
    )
    device: int = option(0, min=0, help="Index of the GPU.")
    engine: str | None = option(
        None, help="Name of an engine of the bundle; rism inspect lists them."
    )
    threads: int | None = threads_option()


@dataclass(frozen=True, kw_only=True)
class SegmenterFlags(EngineFlags):
    """Flags of a segmenter and of its method, for `rism run` and `rism eval`."""

    bundle: str | None = option(None, help=BUNDLE_HELP)
    precision: EnginePrecision | None = option(
        None, help="Precision to compute in. Default: any that is available."
    )
    capture: CaptureName | None = option(
        None, help="Transformer graph to use. Default: the bundle's."
    )
    memory: str | None = memory_option()
    template: str | None = template_option()
    instructions: Path | None = instructions_option()
    tau: float | None = tau_option()
    tokens: TokenSet | None = option(
        None, help="Prompt tokens whose attention counts. Default: all, with padding."
    )
    magnets: str | None = option(
        None,
        metavar="WORDS",
        callback=in_utf_8,
        help="Append these words to the prompt to absorb stray attention; their tokens are "
        "ignored.",
    )
    sinks: bool = option(
        False,
        help="Detect attention-sink tokens and rerun with their weight set to 0; needs a "
        "bundle exported with --token-attention.",
    )
    upsample: UpsamplingMethod | None = option(
        None,
        help="How the mask reaches the size of the image: guided follows the edges of the "
        "image. Default: guided.",
    )
    spatial_prior: bool | None = option(
        None,
        "--spatial-prior/--no-spatial-prior",
        help="Use words of place such as 'left' and 'top'. Default: off.",
    )
    instances: bool | None = option(
        None,
        "--instances/--no-instances",
        help="Of several regions, keep the one that words of place and size mean. Default: off.",
    )
    confidence: float | None = option(
        None,
        callback=expecting("0 to 1, such as 0.5", lambda least: 0 <= least <= 1),
        help="Return an empty mask below this confidence. Default: the bundle's threshold.",
    )
    always: bool = option(False, help="Return a mask even at low confidence.")
    paper: bool = option(
        False, help="Use the published method only: disables contours and rejection."
    )

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
        segmenter = same_named(
            Segmenter.from_bundle,
            self,
            path_or_name=bundle,
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
