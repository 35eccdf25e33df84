"""`rism build`: the door to rism.export.engines, which the runtime otherwise never opens."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rism.runtime.cli.console import Console, UsageError, write_stdout
from rism.runtime.extras import import_extra

__all__ = ["BuildFlags", "build", "check_engine", "default_engine"]


@dataclass(frozen=True)
class BuildFlags:
    """The flags of `rism build`."""

    bundle: Path
    target: str = "tensorrt-rtx"
    precision: str | None = None
    gpu: str | None = None
    shapes: str | None = None
    batch: str = "1/1/8"
    capture: str | None = None
    strip_weights: bool = False
    bind_weights: bool = False
    scales: Path | None = None
    name: str | None = None
    unchecked: bool = False
    force: bool = False
    timeout_s: float = 3600.0


def build(flags: BuildFlags, console: Console) -> None:
    """Build engines of a bundle's graphs, add them to it, and print what became of each.

    Raises:
        UsageError: flags that exclude each other, or numbers that are none.
        RismError: a package is missing, or the build failed; the bundle is as it was.
    """
    batch = _batch(flags.batch)
    if flags.strip_weights and flags.bind_weights:
        raise UsageError("--strip-weights and --bind-weights exclude each other: pass one")
    engines = _engines()
    weights = "stripped" if flags.strip_weights else "bound" if flags.bind_weights else "plan"
    targets = import_module("rism.export.engines.targets")
    options = engines.BuildOptions(
        target=flags.target,
        precision=flags.precision,
        gpus=targets.parse_gpus(flags.gpu) if flags.gpu is not None else (),
        shapes=flags.shapes,
        batch=batch,
        captures=_captures(flags.capture),
        weights=weights,
        scales=flags.scales,
        name=flags.name,
        unchecked=flags.unchecked,
        force=flags.force,
        timeout_s=flags.timeout_s,
    )
    progress = import_module("rism.export.progress")
    start = time.perf_counter()
    report = engines.build_engines(
        flags.bundle,
        options,
        progress=progress.Progress() if console.quiet else progress.TerminalProgress(),
    )
    if not console.quiet and report.graphs:
        write_stdout(f"{report.table()}\n")
    gpus = ", ".join("sm" + each.replace(".", "") for each in report.compute_capabilities)
    variant = f"{report.name} ({report.target} {report.version}, {report.precision}, {gpus})"
    done = (
        f"kept {variant}, which {flags.bundle} has as it was asked for (--force builds it anew)"
        if report.was_there == "kept"
        else f"{report.was_there or 'added'} {variant} {'in' if report.was_there else 'to'} "
        f"{flags.bundle} in {time.perf_counter() - start:.0f} s"
    )
    console.note(f"{done}; self-test: {report.self_test}")


def check_engine(text: str, precision: str | None) -> None:
    """Refuse an `--engine` that cannot be built, before a model is exported for it.

    Args:
        text: TARGET or TARGET:PRECISION.
        precision: of the export; None for the model's own.

    Raises:
        UsageError: FP8, which needs a finished bundle to be calibrated on first.
        RismError: no such target, its library is missing, or it needs a GPU that is not here.
    """
    name, _, asked = text.partition(":")
    if asked == "fp8":
        raise UsageError(
            f"--engine is {text}, and FP8 needs scales, which are found on a finished bundle: "
            "export, then rism calibrate, then rism build --precision fp8"
        )
    if precision is not None and asked not in ("", precision):
        raise UsageError(
            f"--engine is {text} and --precision {precision}: an engine has its graph's precision"
        )
    _engines()
    targets = import_module("rism.export.engines.targets")
    target = targets.find_target(name)
    targets.check_gpus(target, (), asked or precision or "fp16", targets.gpus_here())
    targets.installed_version(target)


def default_engine(bundle: Path, text: str, console: Console) -> None:
    """Build what `rism export --engine TARGET[:PRECISION]` asks for.

    Raises:
        RismError: see `build`.
    """
    target, _, precision = text.partition(":")
    build(BuildFlags(bundle, target=target, precision=precision or None), console)


def _engines() -> Any:
    return import_extra("rism.export.engines", command="build", extra="build")


def _batch(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,3})(?:/(\d{1,3})/(\d{1,3}))?", text.strip(), re.ASCII)
    low, best, high = (int(part or match[1]) for part in match.groups()) if match else (0, 0, 0)
    if not 1 <= low <= best <= high:
        raise UsageError(
            f"--batch is '{text}', expected growing MIN/OPT/MAX, such as 1/1/8, or a number from 1"
        )
    return low, best, high


def _captures(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))
