"""`rism calibrate`: the scales of a bundle's FP8 engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rism.calibration.names import ScaleRule
from rism.cli.console import Console, UsageError
from rism.cli.flags import QuietFlags, argument, expecting, option, threads_option
from rism.runtime.distribution import needs_extra
from rism.runtime.errors import InputError, OutputError

if TYPE_CHECKING:
    from rism.calibration.samples import CalibrationSample

_PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class CalibrateFlags(QuietFlags):
    """The flags of `rism calibrate`."""

    bundle: str = argument(..., metavar="BUNDLE", help="A folder that rism export wrote.")
    images: Path = option(..., metavar="DIR", help="A folder of images.")
    expressions: Path | None = option(
        None,
        metavar="FILE",
        help="What to find in them: one expression a line, or JSON with 'image' and "
        "'expression'. Default: a few that fit any image.",
    )
    output: Path | None = option(
        None,
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write the scales. Default: into the bundle.",
    )
    rule: ScaleRule = option(
        "max",
        help="The range of a layer: its largest value (max), a percentile, or the percentile "
        "that keeps the masks (mask).",
    )
    percentile: float | None = option(
        None,
        callback=expecting("above 0 to 100, such as 99.99", lambda share: 0 < share <= 100),
        help="For --rule percentile. Default: 99.99.",
    )
    keep: list[str] | None = option(
        None, metavar="PATTERN", help="Layers to leave out of FP8, such as '*.to_out'."
    )
    samples: int = option(32, min=1, help="Maximum number of images with an expression.")
    activations: Path | None = option(
        None,
        metavar="FILE",
        help="Write moments of activations, by which rism export rounds to int8 and int4.",
    )
    report: Path | None = option(
        None, metavar="FILE", help="Write the effect on each layer as JSON."
    )
    plot: Path | None = option(None, metavar="FILE", help="Plot it: .png, .svg or .pdf.")
    threads: int | None = threads_option()


def calibrate(flags: CalibrateFlags, console: Console) -> None:
    """Measure the scales of BUNDLE's FP8 engines on images."""
    from rism.cli.inputs import find_inputs
    from rism.cli.outputs import check_outputs
    from rism.runtime.atomic_write import write_atomically
    from rism.runtime.bundle.reader import Bundle, resolve_bundle
    from rism.runtime.bundle.update import expect_own_bundle, store_file

    _check(flags)
    if flags.output is None:
        expect_own_bundle(resolve_bundle(flags.bundle))
    # Problems with the images are reported before anything heavy is imported.
    if not flags.images.is_dir():
        found = "is a file" if flags.images.exists() else "does not exist"
        raise InputError(
            f"--images '{flags.images}' {found}, expected a folder of images to calibrate on"
        )
    inputs = find_inputs([str(flags.images)])
    check_outputs(
        [path for path in _files(flags) if path is not None],
        [*inputs.files, *([] if flags.expressions is None else [flags.expressions])],
    )
    for note in inputs.notes:
        console.note(f"note: {note}")
    with needs_extra("calibrate", "calibrate"):
        from rism.calibration import CalibrationOptions
        from rism.calibration import calibrate as measure_scales
        from rism.calibration.activation_moments import moments_to_bytes
        from rism.calibration.report import check_plotter, plot_report

        if flags.plot is not None:
            check_plotter()
    bundle = Bundle.open(resolve_bundle(flags.bundle))
    start = time.perf_counter()
    options = CalibrationOptions(
        rule=flags.rule,
        keep=tuple(flags.keep or ()),
        threads=flags.threads,
        percentile=flags.percentile or CalibrationOptions.percentile,
    )
    samples = _samples(flags, inputs.files)

    def progress(stage: str, done: int, total: int) -> None:
        if done:
            console.progress(done, total, stage)
        else:
            console.detail(stage)

    report = measure_scales(bundle, samples, options, progress=progress)
    scales, agreement = report.scales, report.chosen
    encoded = scales.to_json().encode()
    if flags.output is None:
        entry = {"file": "scales.json", "graph": "transformer"}
        store_file(bundle.path, "scales.json", encoded, lambda data: data.update(calibration=entry))
    else:
        write_atomically(flags.output, encoded)
    if flags.activations is not None:
        write_atomically(flags.activations, moments_to_bytes(report.moments))
    if flags.report is not None:
        write_atomically(flags.report, report.to_json().encode())
    if flags.plot is not None:
        plot_report(report, flags.plot)
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
    if flags.plot is not None and flags.plot.suffix.lower() not in _PLOTS:
        raise UsageError(f"--plot is '{flags.plot}', expected a name in {', '.join(_PLOTS)}")
    # A calibration may take hours: its output folders are checked first.
    for path in _files(flags):
        if path is not None and not path.parent.is_dir():
            raise OutputError(
                f"folder {path.parent} does not exist: make it first (mkdir -p {path.parent})"
            )


def _files(flags: CalibrateFlags) -> tuple[Path | None, ...]:
    return flags.output, flags.activations, flags.report, flags.plot


def _samples(flags: CalibrateFlags, images: Sequence[Path]) -> list[CalibrationSample]:
    """Return images with expressions, spread evenly over all where there are too many."""
    from rism.calibration.samples import EXPRESSIONS, in_turn, read_expressions

    found = (
        in_turn(images, EXPRESSIONS)[: len(images)]
        if flags.expressions is None
        else read_expressions(flags.expressions, images)
    )
    count = min(flags.samples, len(found))
    return [found[at * len(found) // count] for at in range(count)]
