"""`rism export-triton`: the door to rism.export.triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.cli.console import Console, write_stdout
from rism.runtime.extras import import_extra

__all__ = ["TritonFlags", "write_repository"]


@dataclass(frozen=True)
class TritonFlags:
    """The flags of `rism export-triton`."""

    bundle: str | None
    output: Path
    capture: str | None = None
    engine: str | None = None
    device: str = "auto"
    instances: int = 1
    max_batch: int = 8
    queue_delay: int = 1000
    tau: float | None = None
    prefix: str = ""
    link: bool = False
    segmenter: bool = False


def write_repository(flags: TritonFlags, console: Console) -> None:
    """Write a model repository and print its models.

    Raises:
        RismError: the packages are missing, or the repository cannot be written.
    """
    triton = _triton()
    options = triton.TritonOptions(
        capture=flags.capture,
        engine=flags.engine,
        serving=triton.Serving(flags.device, flags.instances, flags.queue_delay),
        max_batch=flags.max_batch,
        tau=flags.tau,
        prefix=flags.prefix,
        link=flags.link,
        segmenter=flags.segmenter,
    )
    options.check()
    console.note("checking the bundle's files")
    bundle = Bundle.open(resolve_bundle(flags.bundle))
    report = triton.export_triton(bundle, flags.output, options)
    if not console.quiet:
        write_stdout(f"{report.table()}\n")
    amount = f"{report.copied_bytes / 1e6:,.1f} MB copied"
    console.note(f"wrote {flags.output}, {'weights linked' if flags.link else amount}")


def _triton() -> Any:
    return import_extra("rism.export.triton", command="export-triton", extra="triton")
