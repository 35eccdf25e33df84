"""The flags of `rism build` and other commands that work on a bundle.

app.py registers them; like there, only typer is imported.
"""

from pathlib import Path
from typing import Annotated

import typer

from rism.runtime.cli.flags import (
    BUNDLE_HELP,
    CalibrationRule,
    Capture,
    EnginePrecision,
    Quiet,
    Target,
    Tau,
    Threads,
    TritonDevice,
    Verbose,
    expecting,
)

__all__ = ["build", "bundles", "calibrate", "export_triton", "push"]


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    target: Annotated[
        Target, typer.Option(help="The library that is to run the engines.")
    ] = Target.rtx,
    precision: Annotated[
        EnginePrecision | None,
        typer.Option(
            help="Left out: that of the bundle's graphs. fp8 needs scales of rism calibrate; for "
            "fp16 and bf16 export the model with that --precision."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="sm86,sm89,sm120,...  Left out: all that the library can build for."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="MIN/OPT/MAX, each WIDTHxHEIGHT of what the model sees; one size; or static. "
            "Left out: whatever the bundle takes."
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Expressions of a run, MIN/OPT/MAX or one number.")
    ] = "1/1/8",
    capture: Annotated[
        str | None, typer.Option(help="Transformer graphs to build. Left out: all.")
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option("--strip-weights", help="Engines refitted from the bundle's own weights."),
    ] = False,
    bind_weights: Annotated[
        bool,
        typer.Option("--bind-weights", help="Engines that take the bundle's weights as inputs."),
    ] = False,
    scales: Annotated[
        Path | None, typer.Option(help="FP8 scales. Left out: those in the bundle.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the engine. Left out: target and precision.")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Keep engines whose layers fail their checks.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build anew what the bundle has as it is asked for.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            callback=expecting("seconds above 0", lambda seconds: 0 < seconds < float("inf")),
            help="Seconds for one graph.",
        ),
    ] = 3600.0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build TensorRT engines of a bundle's graphs, and add them to the bundle."""
    from rism.runtime.cli.build import BuildFlags
    from rism.runtime.cli.build import build as run_build
    from rism.runtime.cli.console import Console

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = BuildFlags(
            bundle=bundle,
            target=target.value,
            precision=None if precision is None else precision.value,
            gpu=gpu,
            shapes=shapes,
            batch=batch,
            capture=capture,
            strip_weights=strip_weights,
            bind_weights=bind_weights,
            scales=scales,
            name=name,
            unchecked=unchecked,
            force=force,
            timeout_s=timeout,
        )
        run_build(flags, console)


def bundles(
    remove: Annotated[
        str | None, typer.Option(metavar="NAME", help="Remove this one instead.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """List the bundles that rism keeps in this user's cache."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.kept_bundles import list_bundles, remove_bundle

    with Console(verbose=verbose).reporting():
        if remove is None:
            list_bundles()
        else:
            remove_bundle(remove)


def push(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A folder of rism export.")],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="On the model hub; made if need be.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository that only you can read.")
    ] = False,
    licence_allows: Annotated[
        bool,
        typer.Option(
            "--licence-allows", help="You read the licence: the weights may be passed on."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Upload a bundle to the model hub, after a check of its files."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.kept_bundles import push_bundle

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        push_bundle(
            bundle, repository, private=private, any_licence=licence_allows, console=console
        )


def calibrate(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A folder that rism export wrote.")
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="A folder of pictures.")],
    expressions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to ask of them: one to a line, or JSON with 'image' and 'expression'. "
            "Left out: a few that fit any picture.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the scales there. Left out: store them in the bundle."
        ),
    ] = None,
    rule: Annotated[
        CalibrationRule,
        typer.Option(help="Largest value; a percentile; or the percentile that keeps the masks."),
    ] = CalibrationRule.max,
    percentile: Annotated[
        float | None,
        typer.Option(
            callback=expecting("above 0 to 100, such as 99.99", lambda share: 0 < share <= 100),
            help="For --rule percentile. Left out: 99.99.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers to leave as they are, such as '*.to_out'."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Use at most so many pictures with an expression.")
    ] = 32,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what it does to each layer as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the scales of BUNDLE's FP8 engines on pictures."""
    from rism.runtime.cli.calibrate import CalibrateFlags, calibrate_bundle
    from rism.runtime.cli.console import Console

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = CalibrateFlags(
            bundle=bundle,
            images=images,
            expressions=expressions,
            output=output,
            rule=rule.value,
            percentile=percentile,
            keep=tuple(keep or ()),
            samples=samples,
            report=report,
            plot=plot,
            threads=threads,
        )
        calibrate_bundle(flags, console)


def export_triton(
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model repository to write, a folder.")
    ],
    capture: Annotated[
        Capture | None,
        typer.Option(help="Which transformer graph. Left out: scores, where the bundle has it."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Serve the plans of this engine of the bundle."),
    ] = None,
    device: Annotated[
        TritonDevice, typer.Option(help="Where the models run; auto leaves it to the server.")
    ] = TritonDevice.auto,
    instances: Annotated[
        int, typer.Option(min=1, max=64, help="Of each model, on each device.")
    ] = 1,
    max_batch: Annotated[
        int, typer.Option(min=1, max=256, help="Expressions that the server may join into one run.")
    ] = 8,
    queue_delay: Annotated[
        int,
        typer.Option(
            min=0, max=10_000_000, help="Microseconds that a request may wait for others."
        ),
    ] = 1000,
    tau: Tau = None,
    prefix: Annotated[
        str, typer.Option(help="Before every model's name, for servers of several bundles.")
    ] = "",
    link: Annotated[
        bool, typer.Option("--link", help="Hard links to the bundle's weights, not copies.")
    ] = False,
    segmenter: Annotated[
        bool,
        typer.Option(
            "--segmenter",
            help="Also a model that takes pictures and expressions, in the Python backend.",
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model repository for Triton Inference Server."""
    from rism.runtime.cli.console import Console
    from rism.runtime.cli.export_triton import TritonFlags, write_repository

    console = Console(quiet=quiet, verbose=verbose)
    with console.reporting():
        flags = TritonFlags(
            bundle=bundle,
            output=output,
            capture=None if capture is None else capture.value,
            engine=engine,
            device=device.value,
            instances=instances,
            max_batch=max_batch,
            queue_delay=queue_delay,
            tau=tau,
            prefix=prefix,
            link=link,
            segmenter=segmenter,
        )
        write_repository(flags, console)
