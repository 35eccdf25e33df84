"""The commands, and the flags of those that need no more than a bundle and the runtime.

Only typer is imported here: `--help` must not wait for numpy. Each command imports what it
needs when it runs.
"""

from pathlib import Path
from typing import Annotated

import typer

from rism.runtime.cli.ablate_commands import ablate
from rism.runtime.cli.bundle_commands import build, bundles, calibrate, export_triton, push
from rism.runtime.cli.eval_commands import evaluate, fit_confidence
from rism.runtime.cli.export_commands import export, refine
from rism.runtime.cli.flags import (
    BUNDLE_HELP,
    Always,
    Capture,
    Confidence,
    Device,
    EngineName,
    EnginePrecision,
    Expressions,
    Instances,
    Magnets,
    Paper,
    Quiet,
    Recursive,
    RunProvider,
    Sinks,
    SpatialPrior,
    Tau,
    Template,
    Threads,
    Tokens,
    UpsampleChoice,
    Verbose,
    Workers,
)

__all__ = ["app"]

app = typer.Typer(
    name="rism",
    help="Which pixels does an expression refer to? Asked of an image-editing model.",
    no_args_is_help=True,
    # Rich costs more time than everything else that --help does, and breaks lines in errors.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from rism import __version__

        typer.echo(f"rism {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Which pixels does an expression refer to? Asked of an image-editing model."""


@app.command()
def run(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|EXPRESSION",
            help="Images, folders of them, or - for stdin; and what to find, one quoted text "
            "each. What is there is an image; what may be either is refused.",
        ),
    ],
    expression: Expressions = None,
    recursive: Recursive = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="FILE.png, FILE.json, a folder (DIR/), or - for a PNG on stdout. "
            "Left out: IMAGE.EXPRESSION.mask.png and .overlay.png in the current folder.",
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(help="Images to write: mask,overlay,cutout,heatmap or all."),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the results as JSON at the end, masks as COCO RLE; a run that is stopped "
            "prints what it has.",
        ),
    ] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print them as JSON Lines, each as it is known.")
    ] = False,
    bundle: Annotated[
        str | None,
        typer.Option(help=BUNDLE_HELP),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of rism export, such as flux2-klein-4b, in place of a bundle: exported "
            "once to this user's cache (rism bundles), after a question if that takes gigabytes."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask that.")] = False,
    provider: RunProvider = "auto",
    device: Device = 0,
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(help="What the graphs are to compute in. Left out: any that fits."),
    ] = None,
    engine: EngineName = None,
    capture: Annotated[
        Capture | None, typer.Option(help="Which transformer graph; the bundle has a default.")
    ] = None,
    tau: Tau = None,
    tokens: Annotated[
        Tokens, typer.Option(help="Which tokens of the prompt count; padding does only in all.")
    ] = Tokens.all,
    magnets: Magnets = None,
    sinks: Sinks = False,
    upsample: UpsampleChoice = None,
    spatial_prior: SpatialPrior = None,
    instances: Instances = None,
    confidence: Confidence = None,
    always: Always = False,
    paper: Paper = False,
    template: Template = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Python that rewords each instruction after a look at the picture.",
        ),
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Say it in the words of a file that rism refine wrote."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep text embeddings here; the text encoder is loaded only for new ones.",
        ),
    ] = None,
    threads: Threads = None,
    workers: Workers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Segment what each EXPRESSION refers to in each IMAGE."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.run import RunOptions, run_pictures
    from rism.runtime.options import drop_unset

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        options = RunOptions(
            arguments=tuple(arguments),
            expressions=tuple(expression or ()),
            recursive=recursive,
            output=output,
            save=save,
            as_json=json,
            json_lines=jsonl,
            bundle=bundle,
            model=model,
            yes=yes,
            provider=provider,
            device=device,
            precision=None if precision is None else precision.value,
            engine=engine,
            capture=None if capture is None else capture.value,
            choices=drop_unset(
                tau=tau,
                prompt_weights=tokens.value,
                magnets=magnets,
                sinks=sinks or None,
                upsample=None if upsample is None else upsample.value,
                spatial_prior=spatial_prior,
                instances=instances,
                confidence=confidence,
                always=always or None,
                paper=paper or None,
            ),
            template=template,
            refiner=refiner,
            instructions=instructions,
            cache=cache,
            threads=threads,
            workers=workers,
        )
        run_pictures(options, console)


@app.command()
def inspect(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """Check a bundle's files and print what it is."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.inspect import inspect_bundle

    with Console(verbose=verbose).reporting():
        inspect_bundle(bundle, as_json=json)


@app.command()
def doctor(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP),
    ] = None,
    provider: RunProvider = "auto",
    device: Device = 0,
    engine: EngineName = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Store what PROVIDER computes as the vectors to compare with."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Say what runs here and what does not, and compare every engine's numbers."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.doctor import DoctorFlags, examine

    console = Console(verbose=verbose)
    with console.reporting():
        examine(DoctorFlags(bundle, provider, device, engine, record, json, threads), console)


# In the order of --help.
app.command()(export)
app.command()(build)
app.command()(calibrate)
app.command()(refine)
app.command()(bundles)
app.command()(push)
app.command("export-triton")(export_triton)
app.command("eval")(evaluate)
app.command("fit-confidence")(fit_confidence)
app.command()(ablate)

# A short help of its own is wrapped; without one typer cuts the sentence.
for _command in app.registered_commands:
    _command.short_help = _command.callback.__doc__ if _command.callback else None
