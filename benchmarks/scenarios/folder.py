"""A folder of images through `rism run`: several at once, against one after the other.

Each run is a process that reads and segments every image, and writes its mask and its overlay.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness.child_process import time_and_peak
from benchmarks.harness.errors import DiffersError
from benchmarks.harness.rows import EXAMPLE, Row, Task, check_known, image_size, timed

BASELINE, OURS = "single calls", "overlapped"
# Arguments of `rism run`; without them it chooses both numbers.
WAYS: dict[str, tuple[str, ...]] = {
    BASELINE: ("--workers", "1"),
    OURS: (),
    "1 worker, 1 thread": ("--workers", "1", "--threads", "1"),
    "2 workers, 2 threads": ("--workers", "2", "--threads", "2"),
    "2 workers, 4 threads": ("--workers", "2", "--threads", "4"),
    "3 workers, 3 threads": ("--workers", "3", "--threads", "3"),
    "4 workers, 4 threads": ("--workers", "4", "--threads", "4"),
}


def measure(task: Task) -> Iterator[Row]:
    """Measure every number of images; each is a group.

    Raises:
        DiffersError: two ways have written different files.
    """
    names = check_known("way", task["ways"], WAYS)
    with tempfile.TemporaryDirectory() as place:
        few = Path(place) / "few"
        draw(few, 4, image_size(task["size"]))
        for name in names:  # files that are read for the first time take longer
            time_and_peak({name: partial(_command, few, few.parent / "out", name)}, runs=1)
    for count in task["images"]:
        yield from _folder(task, names, count)


def _folder(task: Task, names: list[str], count: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        images, outputs = Path(place) / "images", {each: Path(place) / each for each in names}
        draw(images, count, image_size(task["size"]))
        commands: dict[str, Callable[[], tuple[str, ...]]] = {
            name: partial(_command, images, folder, name) for name, folder in outputs.items()
        }
        found = time_and_peak(commands, runs=task.runs)
        written = [
            {file.name: file.read_bytes() for file in folder.iterdir()}
            for folder in outputs.values()
        ]
    differ = [file for file, data in written[0].items() if any(w[file] != data for w in written)]
    if differ:
        raise DiffersError(
            f"{len(differ)} of {len(written[0])} files differ between the ways, such as {differ[0]}"
        )
    return [
        timed(name, timing, group=f"{count} images", host_bytes=peak, files=len(written[0]))
        for name, (timing, peak) in found.items()
    ]


def _command(images: Path, output: Path, way: str) -> tuple[str, ...]:
    start = ("-m", "rism", "run", str(images), "the green van", "-o", f"{output}/", "-q")
    return (*start, "--provider", "cpu", *WAYS[way])


def draw(folder: Path, count: int, size_wh: tuple[int, int]) -> None:
    """Write images no two of which have the same pixels."""
    folder.mkdir()
    with Image.open(EXAMPLE) as image:
        pixels = np.asarray(image.convert("RGB").resize(size_wh))
    for number in range(count):
        moved = np.roll(pixels, number * 7, axis=1)
        moved[0, 0] = (number >> 8, number & 255, 0)
        Image.fromarray(moved).save(folder / f"{number:05d}.png")
