"""`rism export-triton`: a model repository of Triton Inference Server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rism.cli.console import Console, write_stdout
from rism.cli.flags import BUNDLE_HELP, QuietFlags, Tau
from rism.export.names import ServerDevice
from rism.runtime.distribution import needs_extra
from rism.runtime.names import CaptureName


@dataclass(frozen=True, kw_only=True)
class ExportTritonFlags(QuietFlags):
    """The flags of `rism export-triton`."""

    bundle: Annotated[str | None, typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP)] = None
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The model repository to write.")
    ]
    capture: Annotated[
        CaptureName | None,
        typer.Option(help="Transformer graph. Default: scores, where the bundle has it."),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Serve the plans of this engine of the bundle."),
    ] = None
    device: Annotated[
        ServerDevice, typer.Option(help="Where the models run; auto leaves it to the server.")
    ] = "auto"
    instances: Annotated[
        int, typer.Option(min=1, max=64, help="Instances of each model on each device.")
    ] = 1
    max_batch: Annotated[
        int, typer.Option(min=1, max=256, help="Expressions that the server may join into one run.")
    ] = 8
    queue_delay: Annotated[
        int,
        typer.Option(
            min=0, max=10_000_000, help="Microseconds that a request may wait for others."
        ),
    ] = 1000
    tau: Tau = None
    prefix: Annotated[
        str, typer.Option(help="Put before every model's name, for servers of several bundles.")
    ] = ""
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the bundle's weights instead of copying them.")
    ] = False
    segmenter: Annotated[
        bool,
        typer.Option(
            "--segmenter",
            help="Add a model of the Python backend that takes images and expressions.",
        ),
    ] = False


def export_triton(flags: ExportTritonFlags, console: Console) -> None:
    """Write a model repository for Triton Inference Server."""
    with needs_extra("triton", "export-triton"):
        from rism.export.triton import Serving, TritonOptions
        from rism.export.triton import export_triton as write_repository
    from rism.runtime.bundle.reader import Bundle, resolve_bundle

    options = TritonOptions(
        capture=flags.capture,
        engine=flags.engine,
        serving=Serving(flags.device, flags.instances, flags.queue_delay),
        max_batch=flags.max_batch,
        tau=flags.tau,
        prefix=flags.prefix,
        link=flags.link,
        segmenter=flags.segmenter,
    )
    options.check()
    console.note("checking the bundle's files")
    bundle = Bundle.open(resolve_bundle(flags.bundle))
    report = write_repository(bundle, flags.output, options)
    if not console.quiet:
        write_stdout(f"{report.table()}\n")
    amount = f"{report.copied_bytes / 1e6:,.1f} MB copied"
    console.note(f"wrote {flags.output}, {'weights linked' if flags.link else amount}")
