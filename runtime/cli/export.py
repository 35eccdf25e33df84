"""`rism export`: the door to rism.export, which the runtime otherwise never opens."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rism.runtime.bundle.manifest import CAPTURES
from rism.runtime.cli.build import check_engine, default_engine
from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.extras import import_extra

__all__ = ["ExportFlags", "export_model"]


@dataclass(frozen=True)
class ExportFlags:
    """The flags of `rism export`."""

    model: str
    output: Path
    capture: str = "vectors"
    feature_site: str = "mmsa"
    token_attention: bool = False
    precision: str | None = None
    size_level: int | None = None
    sizes: str | None = None
    template: str | None = None
    vision_id: bool | None = None
    parity: str = "auto"
    revision: str | None = None
    offline: bool = False
    dry_run: bool = False
    engines: tuple[str, ...] = ()


def export_model(flags: ExportFlags, console: Console) -> None:
    """Write a bundle and print its parity table, or print the plan of it; then build engines.

    Raises:
        UsageError: an unknown capture mode, or sizes that are none.
        RismError: the exporter's packages are missing, or the export failed.
    """
    captures, sizes = _parse_captures(flags.capture), _parse_sizes(flags.sizes)
    for engine in flags.engines:
        check_engine(engine, flags.precision)
    if flags.dry_run and find_spec("torch") is None:
        _plan_from_headers(flags)
        return
    exporter = _exporter()
    options = exporter.ExportOptions(
        captures=captures,
        feature_site=flags.feature_site,
        token_attention=flags.token_attention,
        precision=flags.precision,
        size_level=flags.size_level,
        sizes=sizes,
        template=flags.template,
        vision_id=flags.vision_id,
        parity=flags.parity,
        revision=flags.revision,
        offline=flags.offline,
    )
    if flags.dry_run:
        plan = exporter.plan_export(flags.model, flags.output, options)
        write_stdout(f"{plan.table()}\n")
        plan.check(flags.output)
        return
    start = time.perf_counter()
    progress = exporter.Progress() if console.quiet else exporter.TerminalProgress()
    report = exporter.export_bundle(flags.model, flags.output, options, progress=progress)
    if not console.quiet:
        write_stdout(f"{report.parity_table().rstrip()}\n")
    console.note(
        f"wrote {flags.output}, {report.size_bytes / 1e6:,.1f} MB, in "
        f"{time.perf_counter() - start:.0f} s"
    )
    for engine in flags.engines:
        default_engine(flags.output, engine, console)


def _plan_from_headers(flags: ExportFlags) -> None:
    """Print what file sizes and headers say, where there is no PyTorch to build the modules."""
    if flags.precision not in (None, "fp32", "fp16", "bf16"):
        raise UsageError(f"--precision is '{flags.precision}', expected fp32, fp16 or bf16")
    plan = import_module("rism.export.plan.header_plan").plan_from_headers(
        flags.model,
        flags.output,
        precision=flags.precision,
        revision=flags.revision,
        offline=flags.offline,
    )
    write_stdout(f"{plan.table()}\n")
    plan.check(flags.output)


def _exporter() -> Any:
    # rism.export itself would wait with what it needs.
    import_extra("rism.export.exporter", command="export", extra="export")
    return import_module("rism.export")


def _parse_captures(text: str) -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",")]
    unknown = [part for part in asked if part not in CAPTURES]
    if unknown:
        raise UsageError(f"--capture has '{unknown[0]}', expected some of {','.join(CAPTURES)}")
    return tuple(dict.fromkeys(asked))


def _parse_sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    if text is None:
        return ()
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})\s*", part, re.ASCII)
        if match is None:
            raise UsageError(f"--sizes has '{part}', expected WIDTHxHEIGHT, such as 1024x768")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(sizes))
