"""What `rism run` writes about each image: drawn in threads, written in the order of the images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rism.cli.console import Console, ReaderGoneError, write_stdout
from rism.cli.inputs import InputImage, Inputs
from rism.cli.line_file import LineFile
from rism.cli.outputs import Destination
from rism.cli.parallel_map import map_ordered
from rism.cli.result_format import failure_record, json_line, json_text, result_record, summary_line
from rism.runtime.arrays import Uint8
from rism.runtime.atomic_write import write_atomically
from rism.runtime.errors import InputError, RismError, one_line
from rism.runtime.image.loading import pixel_count
from rism.runtime.result.rendering import encode_png, overlay, render
from rism.runtime.result.segmentation import Segmentation

if TYPE_CHECKING:
    from rism.cli.dataset import DatasetWriter, EncodedImage

# About 12 bytes each while an image is drawn, 20 with a heat map.
_MOST_PIXELS_AT_ONCE = 32_000_000


class ImageError(InputError):
    """An image that has no result, where another may have one."""


@dataclass(frozen=True)
class SegmentedImage:
    """An image, (H, W, 3) uint8 RGB, with a result for each expression."""

    pixels: Uint8
    results: list[Segmentation]


@dataclass(frozen=True)
class ResultOutput:
    """Everything that is written about one expression on one image.

    Attributes:
        files: paths and contents; the path None is stdout.
        record: the entry of the JSON; None without JSON.
        line: the result in a line.
        detail: instruction and timings, for -v.
        empty: whether the mask is.
    """

    files: tuple[tuple[Path | None, bytes], ...]
    record: dict[str, Any] | None
    line: str
    detail: str
    empty: bool


@dataclass(frozen=True)
class ImageOutput:
    """Everything that is written about one image; `encoded` is for the dataset."""

    results: list[ResultOutput]
    encoded: EncodedImage | None


@dataclass
class _Counts:
    """Images and masks so far."""

    done: int = 0
    failed: int = 0
    masks: int = 0
    empty: int = 0

    def line(self, skipped: int) -> str:
        """Return all of them in a line."""
        others = ((skipped, "skipped"), (self.failed, "failed"))
        parts = [f"{self.done} done", *(f"{many} {what}" for many, what in others if many)]
        total = self.done + self.failed + skipped
        found = f"{self.masks - self.empty} masks, {self.empty} expressions not found"
        return f"{total} images: {', '.join(parts)}; {found}"


def deliver(
    segment: Callable[[InputImage], SegmentedImage] | None,
    inputs: Inputs,
    destination: Destination,
    names: Mapping[str, str],
    *,
    dataset: DatasetWriter | None = None,
    workers: int,
    stop: bool = False,
    console: Console,
) -> None:
    """Segment all images and write the results in their order.

    Of several images those that fail are reported and counted, the others still written. However
    the run ends, a JSON of several images has the results so far, and says what is missing.

    `segment` is called in `workers` threads, and raises ImageError for an image that has no result;
    it may be None where there is no image left.
    `names` are the expressions as parts of file names.

    Raises:
        ImageError: the only image failed, or one of several and `stop` is set.
        RismError: some of several images failed, or a file cannot be written.
    """

    def work(image: InputImage) -> ImageOutput:
        assert segment is not None
        found = segment(image)
        slugs = [names[text] for text in image.expressions]
        results = [_draw(image, found, at, destination, slugs) for at in range(len(slugs))]
        encoded = None if dataset is None else dataset.encode(image, found)
        return ImageOutput(results, encoded)

    images = inputs.images
    outputs = map_ordered(work, images, workers=workers, weigh=_pixels, most=_MOST_PIXELS_AT_ONCE)
    records = _Records(destination)
    counts = _Counts()
    try:
        with closing(outputs):
            for image, output in zip(images, outputs, strict=True):
                if inputs.several:
                    console.progress(counts.done + counts.failed, len(images), image.label)
                try:
                    found = output()
                except ImageError as error:
                    if not inputs.several:
                        raise
                    if stop:
                        raise ImageError(f"{image.label}: {error}") from error
                    console.error(f"{image.label}: {error}")
                    records.add([failure_record(image.label, error)])
                    counts.failed += 1
                else:
                    records.add(_write(found, destination, console))
                    if dataset is not None and found.encoded is not None:
                        dataset.add(found.encoded)
                    counts.done += 1
                    counts.masks += len(found.results)
                    counts.empty += sum(result.empty for result in found.results)
        if dataset is not None:
            dataset.finish(complete=not counts.failed)
    except BaseException as error:
        if inputs.several:
            records.break_off(images[counts.done + counts.failed :], error, console)
        if dataset is not None and counts.done:
            console.note(f"note: --resume goes on with {one_line(dataset.folder)}")
        raise
    finally:
        records.close()
        if dataset is not None:
            dataset.close()
    records.finish()
    if inputs.several:
        console.note(counts.line(inputs.skipped))
    if counts.failed:
        raise RismError(f"{counts.failed} of {len(images)} images failed, the others are written")


def _draw(
    image: InputImage, found: SegmentedImage, at: int, wanted: Destination, slugs: Sequence[str]
) -> ResultOutput:
    """Draw one result; with the first, the overlay of all of them."""
    result, pixels = found.results[at], found.pixels
    files: list[tuple[Path | None, bytes]] = []
    written: list[Path] = []
    for kind in wanted.kinds:
        path = None if wanted.to_stdout else wanted.path(image.stem, slugs, at, kind)
        written += [] if path is None else [path]
        if kind != "overlay":
            files.append((path, encode_png(render(result, pixels, kind))))
        elif at == 0:
            files.append((path, encode_png(overlay(pixels, found.results))))
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in result.timings_ms.items())
    return ResultOutput(
        tuple(files),
        result_record(image.label, result, written, image.id) if wanted.as_json else None,
        summary_line(image.label, result, written),
        f'{one_line(image.label)}: "{result.instruction}", {stages} ms',
        result.area_px == 0,
    )


def _pixels(image: InputImage) -> int:
    return 0 if image.path is None else pixel_count(image.path)


def _write(found: ImageOutput, destination: Destination, console: Console) -> list[dict[str, Any]]:
    """Write the files of one image, print its lines, and return its JSON entries."""
    stdout_is_data = destination.to_stdout or destination.json_stdout
    for output in found.results:
        for path, data in output.files:
            if path is None:
                write_stdout(data)
            else:
                write_atomically(path, data)
        if not (stdout_is_data or console.quiet or sys.stdout is None):
            console.clear()
            write_stdout(output.line + "\n")
        console.detail(output.detail)
    return [output.record for output in found.results if output.record is not None]


class _Records:
    """The results as JSON: each as a line when it is known, and a list at the end."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._kept: list[dict[str, Any]] = []
        self._lines = None if destination.lines_file is None else LineFile(destination.lines_file)
        if self._lines is not None:
            self._lines.open()

    def add(self, found: Sequence[dict[str, Any]]) -> None:
        """Write entries as lines, and keep them for a list at the end."""
        if self._lines is not None:
            self._lines.append(found)
        self._add_to_json(found)

    def _add_to_json(self, found: Sequence[dict[str, Any]]) -> None:
        if self._to.json_lines:
            write_stdout("".join(map(json_line, found)))
        if self._to.json_file is not None or (self._to.json_stdout and not self._to.json_lines):
            self._kept += found

    def finish(self) -> None:
        """Write the list."""
        text = json_text(self._kept)
        if self._to.json_file is not None:
            write_atomically(self._to.json_file, text.encode())
        if self._to.json_stdout and not self._to.json_lines:
            write_stdout(text)

    def break_off(self, left: Sequence[InputImage], error: BaseException, console: Console) -> None:
        """Write the list of a run that ends too early; its last entry says what is missing."""
        why = str(error) or "interrupted"
        more = f"; {len(left) - 1} more images were not looked at" if len(left) > 1 else ""
        try:
            if left:
                self._add_to_json([failure_record(left[0].label, f"{why}{more}")])
            self.finish()
        except RismError as second:
            if not isinstance(second, ReaderGoneError):
                console.error(second)

    def close(self) -> None:
        """Close the file of lines."""
        if self._lines is not None:
            self._lines.close()
