"""What `rism run` writes about each image: drawn in threads, written in the order of the images."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rism.cli.console import Console, ReaderGoneError, write_stdout
from rism.cli.inputs import InputImage, Inputs
from rism.cli.outputs import Destination
from rism.cli.parallel_map import map_ordered
from rism.cli.result_format import failure_record, json_line, json_text, result_record, summary_line
from rism.runtime.arrays import Uint8
from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import InputError, RismError, one_line
from rism.runtime.image.loading import pixel_count
from rism.runtime.result.rendering import encode_png, overlay, render
from rism.runtime.result.segmentation import Segmentation

# About 12 bytes each while an image is drawn, 20 with a heat map.
_MOST_PIXELS_AT_ONCE = 32_000_000


class ImageError(InputError):
    """An image that has no result, where another may have one."""


@dataclass(frozen=True)
class SegmentedImage:
    """An image, (H, W, 3) uint8 RGB, with a result for each expression.

    `unlike` says why the model cannot handle it, or is None.
    """

    pixels: Uint8
    results: list[Segmentation]
    unlike: str | None


@dataclass(frozen=True)
class ImageOutput:
    """Everything that is written about one expression on one image.

    Attributes:
        files: paths and contents; the path None is stdout.
        record: the entry of the JSON; None without JSON.
        line: the result in a line.
        detail: instruction and timings, for -v.
        warning: why the model cannot handle the image, or None.
    """

    files: tuple[tuple[Path | None, bytes], ...]
    record: dict[str, Any] | None
    line: str
    detail: str
    warning: str | None


def deliver(
    segment: Callable[[InputImage], SegmentedImage],
    inputs: Inputs,
    destination: Destination,
    slugs: Sequence[str],
    *,
    workers: int,
    console: Console,
) -> None:
    """Segment all images and write the results in their order.

    Of several images those that fail are reported and counted, the others still written. However
    the run ends, a JSON of several images has the results so far, and says what is missing.

    `segment` is called in `workers` threads, and raises ImageError for an image that has no result.
    `slugs` are the expressions as parts of file names.

    Raises:
        ImageError: the only image failed.
        RismError: some of several images failed, or a file cannot be written.
    """

    def work(image: InputImage) -> list[ImageOutput]:
        found = segment(image)
        return [_draw(image, found, at, destination, slugs[at]) for at in range(len(found.results))]

    images = inputs.images
    outputs = map_ordered(work, images, workers=workers, weigh=_pixels, most=_MOST_PIXELS_AT_ONCE)
    records: list[dict[str, Any]] = []
    done = failed = 0
    try:
        with closing(outputs):
            for image, output in zip(images, outputs, strict=True):
                if inputs.several:
                    console.progress(done, len(images), image.label)
                try:
                    found = output()
                except ImageError as error:
                    if not inputs.several:
                        raise
                    console.error(f"{image.label}: {error}")
                    _record([failure_record(image.label, error)], records, destination)
                    failed += 1
                else:
                    _record(_write(found, destination, console), records, destination)
                done += 1
    except BaseException as error:
        if inputs.several:
            _deliver_partial_json(records, destination, images[done:], error, console)
        raise
    _deliver_json(records, destination)
    if failed:
        raise RismError(f"{failed} of {len(images)} images failed, the others are written")


def _draw(
    image: InputImage, found: SegmentedImage, at: int, wanted: Destination, slug: str
) -> ImageOutput:
    """Draw one result; with the first, the overlay of all of them."""
    result, pixels = found.results[at], found.pixels
    files: list[tuple[Path | None, bytes]] = []
    written: list[Path] = []
    for kind in wanted.kinds:
        path = None if wanted.to_stdout else wanted.path(image.stem, slug, kind)
        written += [] if path is None else [path]
        if kind != "overlay":
            files.append((path, encode_png(render(result, pixels, kind))))
        elif at == 0:
            files.append((path, encode_png(overlay(pixels, found.results))))
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in result.timings_ms.items())
    return ImageOutput(
        tuple(files),
        result_record(image.label, result, written) if wanted.as_json else None,
        summary_line(image.label, result, written),
        f'{one_line(image.label)}: "{result.instruction}", {stages} ms',
        None if found.unlike is None else f"{one_line(image.label)}: {found.unlike}",
    )


def _pixels(image: InputImage) -> int:
    return 0 if image.path is None else pixel_count(image.path)


def _write(
    outputs: Sequence[ImageOutput], destination: Destination, console: Console
) -> list[dict[str, Any]]:
    """Write the files of one image, print its lines, and return its JSON entries."""
    stdout_is_data = destination.to_stdout or destination.json_stdout
    if outputs[0].warning is not None:
        console.note(f"warning: {outputs[0].warning}")
    for output in outputs:
        for path, data in output.files:
            if path is None:
                write_stdout(data)
            else:
                write_atomically(path, data)
        if not (stdout_is_data or console.quiet or sys.stdout is None):
            console.clear()
            write_stdout(output.line + "\n")
        console.detail(output.detail)
    return [output.record for output in outputs if output.record is not None]


def _record(
    found: Sequence[dict[str, Any]], records: list[dict[str, Any]], destination: Destination
) -> None:
    """Print entries as JSON Lines, and keep them for a JSON at the end."""
    if destination.json_lines:
        write_stdout("".join(map(json_line, found)))
    if destination.json_file is not None or (destination.as_json and not destination.json_lines):
        records += found


def _deliver_json(records: Sequence[dict[str, Any]], destination: Destination) -> None:
    if not destination.as_json:
        return
    text = json_text(records)
    if destination.json_file is not None:
        write_atomically(destination.json_file, text.encode())
    if destination.json_stdout and not destination.json_lines:
        write_stdout(text)


def _deliver_partial_json(
    records: list[dict[str, Any]],
    destination: Destination,
    left: Sequence[InputImage],
    error: BaseException,
    console: Console,
) -> None:
    """Write the JSON of a run that ends too early; its last entry says what is missing."""
    why = str(error) or "interrupted"
    more = f"; {len(left) - 1} more images were not looked at" if len(left) > 1 else ""
    try:
        if left:
            _record([failure_record(left[0].label, f"{why}{more}")], records, destination)
        _deliver_json(records, destination)
    except RismError as second:
        if not isinstance(second, ReaderGoneError):
            console.error(second)
