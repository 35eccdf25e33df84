"""`rism export`: the door to rism.export, which the runtime otherwise never opens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.errors import RismError
from rism.runtime.manifest import CAPTURES

__all__ = ["ExportOptions", "export_model"]


@dataclass(frozen=True)
class ExportOptions:
    """The flags of `rism export`."""

    model: str
    output: Path
    capture: str = "vectors"
    feature_site: str = "mmsa"
    token_attention: bool = False
    revision: str | None = None
    offline: bool = False


def export_model(options: ExportOptions, console: Console) -> None:
    """Write a bundle and print its parity table.

    Raises:
        UsageError: an unknown capture mode.
        RismError: the exporter's packages are missing, or the export failed.
    """
    captures = _parse_captures(options.capture)
    try:
        exporter = import_module("rism.export")
        export_bundle = exporter.export_bundle
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.partition(".")[0] == "rism":
            raise
        raise RismError(
            f'rism export needs {missing}, which is not installed: pip install "rism[export]"'
        ) from error
    start = time.perf_counter()
    report = export_bundle(
        options.model,
        options.output,
        captures=captures,
        feature_site=options.feature_site,
        token_attention=options.token_attention,
        revision=options.revision,
        offline=options.offline,
        progress=console.note,
    )
    if not console.quiet:
        write_stdout(f"{report.parity_table().rstrip()}\n")
    console.note(f"wrote {options.output} in {time.perf_counter() - start:.0f} s")


def _parse_captures(text: str) -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in CAPTURES]
    if unknown:
        raise UsageError(f"--capture has '{unknown[0]}', expected some of {','.join(CAPTURES)}")
    return tuple(dict.fromkeys(asked))
