"""`rism calibrate`: the door to rism.calibration, which the runtime otherwise never opens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.runtime.atomic_write import write_atomically
from rism.runtime.bundle.reader import Bundle, resolve_bundle
from rism.runtime.bundle.update import expect_own_bundle, update_bundle
from rism.runtime.cli.console import Console, UsageError
from rism.runtime.cli.outputs import check_outputs
from rism.runtime.cli.sources import find_sources
from rism.runtime.errors import InputError, OutputError
from rism.runtime.extras import import_extra

__all__ = ["CalibrateFlags", "calibrate_bundle"]

PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class CalibrateFlags:
    """The flags of `rism calibrate`."""

    bundle: str
    images: Path
    expressions: Path | None = None
    output: Path | None = None
    rule: str = "max"
    percentile: float | None = None
    keep: tuple[str, ...] = ()
    samples: int = 32
    report: Path | None = None
    plot: Path | None = None
    threads: int | None = None


class _Lines:
    """What a calibration says of itself, on the console."""

    def __init__(self, console: Console) -> None:
        self._console, self._name = console, ""

    def stage(self, text: str) -> None:
        self._name = text
        self._console.detail(text)

    def step(self, done: int, total: int) -> None:
        self._console.progress(done, total, self._name)


def calibrate_bundle(flags: CalibrateFlags, console: Console) -> None:
    """Find a bundle's FP8 scales, and store them in it or in a file.

    Raises:
        UsageError: flags that do not go together.
        OutputError: a place that cannot be written to.
        RismError: packages are missing, or the pictures, the expressions or the bundle cannot
            be used.
    """
    _check(flags)
    if flags.output is None:
        expect_own_bundle(resolve_bundle(flags.bundle))
    # What is wrong with the pictures is known before anything heavy is imported.
    if not flags.images.is_dir():
        found = "is a file" if flags.images.exists() else "is not there"
        raise InputError(
            f"--images '{flags.images}' {found}, expected a folder of pictures to calibrate on"
        )
    sources = find_sources([str(flags.images)])
    images = sources.files
    check_outputs(
        [path for path in (flags.output, flags.report, flags.plot) if path is not None],
        [*images, *([] if flags.expressions is None else [flags.expressions])],
    )
    for note in sources.notes:
        console.note(f"note: {note}")
    if flags.plot is not None:
        _calibration("rism.calibration.report").check_plotter()
    bundle = Bundle.open(resolve_bundle(flags.bundle))
    start = time.perf_counter()
    calibration = _calibration("rism.calibration")
    options = calibration.CalibrationOptions(
        rule=flags.rule,
        keep=flags.keep,
        threads=flags.threads,
        **({} if flags.percentile is None else {"percentile": flags.percentile}),
    )
    samples = _samples(flags, images)
    report = calibration.calibrate(bundle, samples, options, steps=_Lines(console))
    if flags.output is None:
        _store(bundle.path, report.scales.to_json().encode())
    else:
        write_atomically(flags.output, report.scales.to_json().encode())
    if flags.report is not None:
        write_atomically(flags.report, report.to_json().encode())
    if flags.plot is not None:
        _calibration("rism.calibration.report").plot_report(report, flags.plot)
    scales, agreement = report.scales, report.chosen
    console.note(
        f"{len(scales.layers)} layers in FP8, {len(scales.kept)} kept, rule {scales.rule} "
        f"(percentile {scales.percentile:g}), {len(samples)} samples, "
        f"{time.perf_counter() - start:.0f} s -> {flags.output or bundle.path / 'scales.json'}"
    )
    if agreement is not None:
        console.note(
            f"masks against the bundle's own: mean IoU {agreement.mean_iou:.3f}, lowest "
            f"{agreement.lowest_iou:.3f}"
        )


def _check(flags: CalibrateFlags) -> None:
    if flags.percentile is not None and flags.rule != "percentile":
        raise UsageError(f"--percentile goes with --rule percentile, not with {flags.rule}")
    if flags.plot is not None and flags.plot.suffix.lower() not in PLOTS:
        raise UsageError(f"--plot is '{flags.plot}', expected a name in {', '.join(PLOTS)}")
    # A calibration may take hours: where its results go is looked at first.
    for path in (flags.output, flags.report, flags.plot):
        if path is not None and not path.parent.is_dir():
            raise OutputError(
                f"folder {path.parent} is not there: make it first (mkdir -p {path.parent})"
            )


def _samples(flags: CalibrateFlags, images: Sequence[Path]) -> list[Any]:
    """Pictures with expressions; of more than are asked for an even choice."""
    module = _calibration("rism.calibration.samples")
    found: list[Any] = (
        module.in_turn(images, module.EXPRESSIONS)[: len(images)]
        if flags.expressions is None
        else module.read_expressions(flags.expressions, images)
    )
    count = min(flags.samples, len(found))
    return [found[at * len(found) // count] for at in range(count)]


def _store(folder: Path, scales: bytes) -> None:
    """Put the scales into the bundle, in the place of earlier ones."""
    temporary = folder / f".scales-{secrets.token_hex(6)}.json"
    try:
        write_atomically(temporary, scales)

        def record(manifest: dict[str, Any]) -> None:
            manifest["calibration"] = {"file": "scales.json", "graph": "transformer"}

        update_bundle(folder, record, files={"scales.json": temporary})
    finally:
        temporary.unlink(missing_ok=True)


def _calibration(name: str) -> Any:
    return import_extra(name, command="calibrate", extra="calibrate")
