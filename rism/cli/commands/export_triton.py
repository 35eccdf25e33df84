"""`rism export-triton`: a model repository of Triton Inference Server."""

from dataclasses import dataclass
from pathlib import Path

from rism.cli.console import Console, write_stdout
from rism.cli.flags import BUNDLE_HELP, QuietFlags, argument, option, same_named, tau_option
from rism.export.names import ServerDevice
from rism.runtime.distribution import needs_extra
from rism.runtime.names import CaptureName


@dataclass(frozen=True, kw_only=True)
class ExportTritonFlags(QuietFlags):
    """The flags of `rism export-triton`."""

    bundle: str | None = argument(None, metavar="BUNDLE", help=BUNDLE_HELP)
    output: Path = option(
        ..., "--output", "-o", metavar="DIR", help="The model repository to write."
    )
    capture: CaptureName | None = option(
        None, help="Transformer graph. Default: scores, where the bundle has it."
    )
    engine: str | None = option(
        None, metavar="NAME", help="Serve the plans of this engine of the bundle."
    )
    device: ServerDevice = option(
        "auto", help="Where the models run; auto leaves it to the server."
    )
    instances: int = option(1, min=1, max=64, help="Instances of each model on each device.")
    max_batch: int = option(
        8, min=1, max=256, help="Expressions that the server may join into one run."
    )
    queue_delay: int = option(
        1000, min=0, max=10_000_000, help="Microseconds that a request may wait for others."
    )
    tau: float | None = tau_option()
    prefix: str = option("", help="Put before every model's name, for servers of several bundles.")
    link: bool = option(False, help="Hard-link the bundle's weights instead of copying them.")
    segmenter: bool = option(
        False, help="Add a model of the Python backend that takes images and expressions."
    )


def export_triton(flags: ExportTritonFlags, console: Console) -> None:
    """Write a model repository for Triton Inference Server."""
    with needs_extra("triton", "export-triton"):
        from rism.export.triton import Serving, TritonOptions
        from rism.export.triton import export_triton as write_repository
    from rism.runtime.bundle.reader import Bundle, resolve_bundle

    serving = Serving(flags.device, flags.instances, flags.queue_delay)
    options = same_named(TritonOptions, flags, serving=serving)
    options.check()
    console.note("checking the bundle's files")
    bundle = Bundle.open(resolve_bundle(flags.bundle))
    report = write_repository(bundle, flags.output, options)
    if not console.quiet:
        write_stdout(f"{report.table()}\n")
    amount = f"{report.copied_bytes / 1e6:,.1f} MB copied"
    console.note(f"wrote {flags.output}, {'weights linked' if flags.link else amount}")
