"""The dataset that `rism run --format` writes, image by image, and goes on with after a break.

A format with a file for each image is complete after each of them. One with a single file is put
together at the end, from a file of lines that `--resume` reads: memory does not grow with the
number of images, and a run that is killed leaves no half of a dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rism.cli.console import UsageError
from rism.cli.delivery import ImageError, SegmentedImage
from rism.cli.file_names import readable
from rism.cli.inputs import InputImage, some
from rism.cli.line_file import LineFile
from rism.cli.list_files import Categories
from rism.cli.outputs import make_folders
from rism.runtime.atomic_write import link_or_copy, write_atomically
from rism.runtime.errors import OutputError, one_line
from rism.runtime.names import EPSILON, DatasetFormatName
from rism.runtime.result.formats.annotated import AnnotatedImage, DatasetOptions, Entry
from rism.runtime.result.formats.table import FORMATS
from rism.runtime.result.polygons import polygons
from rism.runtime.result.rendering import encode_png

UNFINISHED = "unfinished.jsonl"
_READ_EVERYWHERE = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FILES = (".json", ".jsonl", ".png", ".txt", ".xml", ".yaml", ".zip")


@dataclass(frozen=True)
class EncodedImage:
    """What a dataset gets of one image: contents of files, a file to link, a line."""

    files: Mapping[Path, bytes]
    linked: tuple[Path, Path] | None
    line: dict[str, Any] | None


class DatasetWriter:
    """A dataset in a folder.

    Attributes:
        folder: where it is.
        title: the format, in messages.
    """

    def __init__(
        self,
        name: DatasetFormatName,
        categories: Categories,
        images: Sequence[InputImage],
        *,
        output: str | None,
        rle: bool,
        epsilon: float | None,
    ) -> None:
        """Take the flags of a run.

        Raises:
            UsageError: they do not fit the format, or an image has no file.
            RismError: polygons need a package that is not installed.
        """
        self._format = FORMATS[name]
        self.title = self._format.title
        for flag, given in (("rle", rle), ("epsilon", epsilon is not None)):
            if given and flag not in self._format.options:
                raise UsageError(f"--{flag} has no meaning for --format {name}: leave it out")
        if rle and epsilon is not None:
            raise UsageError("--epsilon has no meaning with --rle: leave one out")
        if any(image.path is None for image in images):
            raise UsageError(f"--format {name} names images by their files, - has none")
        self.folder = Path(name if output is None else output)
        if self.folder.suffix.lower() in _FILES or self.folder.is_file():
            raise UsageError(f"--format {name} writes a folder, expected -o DIR/")
        self._categories = categories
        self._options = DatasetOptions(
            categories.names, rle, EPSILON if epsilon is None else epsilon
        )
        if "epsilon" in self._format.options and not rle:
            polygons(np.zeros((1, 1), bool))  # tells what is not installed
        self._fixed = self._format.fixed(self._options)
        self._lines = LineFile(self.folder / UNFINISHED)
        self._head: dict[str, Any] = {
            "format": name,
            "categories": list(categories.names),
            "rle": rle,
            "epsilon": self._options.epsilon,
        }
        named = {Path.cwd() / str(image.path)[: -len(str(image.below))] for image in images}
        self._root = Path(os.path.commonpath(map(os.path.normpath, named or ["/"])))
        self._head["images"] = readable(str(self._root))[0]

    def files(self, images: Iterable[InputImage]) -> list[Path]:
        """Return every file that it will have, but for the images themselves."""
        found = [self.folder / name for name in self._fixed]
        if self._format.whole:
            return [*found, self.folder / self._format.whole, self._lines.path]
        return found + [self._image_file(image) for image in images]

    def left(
        self, images: Sequence[InputImage], *, resume: bool, skip_existing: bool
    ) -> tuple[InputImage, ...]:
        """Return the images that it lacks, after a look at the folder.

        Raises:
            UsageError: the folder holds something else, or a dataset that is not to be resumed, or
                one of other categories or flags.
        """
        if self._format.whole and skip_existing:
            raise UsageError(
                f"--skip-existing needs a file for each image, {self.title} has one for all: use "
                "--resume"
            )
        there = self._look(resume=resume or skip_existing)
        if self._format.whole:
            lines = self._lines.read()
            if self._format.whole in there and UNFINISHED not in there:
                raise UsageError(
                    f"{one_line(self.folder)} has a whole {self.title} dataset, nothing to resume: "
                    "choose another folder with -o"
                )
            head = next(lines, self._head)
            if head != self._head:
                raise self._other(UNFINISHED)
            done = {line.get("image") for line in lines}
            return tuple(each for each in images if self._name(each) not in done)
        existing = [each for each in images if all(map(Path.exists, self._own_files(each)))]
        if existing and not (resume or skip_existing):
            raise UsageError(
                f"'{one_line(self._image_file(existing[0]))}' exists: add --skip-existing, or "
                "choose another folder with -o"
            )
        return tuple(each for each in images if each not in set(existing))

    def prepare(self, images: Iterable[InputImage]) -> None:
        """Make its folders and the files that are the same for all images.

        Raises:
            OutputError: a folder or file cannot be written.
        """
        files = self.files(images)
        placed = [self._placed(image) for image in images if self._format.images]
        make_folders([self.folder / "any", *files, *placed])
        for name, data in self._fixed.items():
            write_atomically(self.folder / name, data)
        if self._format.whole:
            new = next(self._lines.read(), None) is None
            self._lines.open()
            if new:
                self._lines.append([self._head])

    def encode(self, image: InputImage, found: SegmentedImage) -> EncodedImage:
        """Return what belongs to one image; threads may call this.

        Raises:
            ImageError: its name cannot be written in the format's files.
        """
        assert image.path is not None
        name = self._name(image)
        if readable(name)[1] is not None or not name.isprintable():
            raise ImageError(f"{self.title} cannot hold this name of a file: rename it")
        height, width = found.pixels.shape[:2]
        masks = [
            (self._categories.indices[text], result)
            for text, result in zip(image.expressions, found.results, strict=True)
            if result.area_px
        ]
        annotated = AnnotatedImage(
            name, self._reference(image), (width, height), tuple(masks), image.id
        )
        if self._format.entry is not None:
            entry = self._format.entry(annotated, self._options)
            return EncodedImage({}, None, {"image": name, "entry": entry})
        assert self._format.encode is not None
        files = {self._image_file(image): self._format.encode(annotated, self._options)}
        linked = None
        if self._format.images is not None:
            if image.path.suffix.lower() in _READ_EVERYWHERE:
                linked = image.path.resolve(), self._placed(image)
            else:
                files[self._placed(image)] = encode_png(found.pixels)
        return EncodedImage(files, linked, None)

    def add(self, image: EncodedImage) -> None:
        """Write what belongs to one image; an image that is copied comes after its labels.

        Raises:
            OutputError: it cannot be written.
        """
        for path, data in image.files.items():
            write_atomically(path, data)
        if image.linked is not None:
            _place(*image.linked)
        if image.line is not None:
            self._lines.append([image.line])

    def finish(self, *, complete: bool) -> None:
        """Write the file for all images, if the format has one.

        Args:
            complete: whether no image failed; otherwise --resume can try those again.

        Raises:
            OutputError: it cannot be written.
        """
        if self._format.assemble is None:
            return
        self.close()
        data = self._format.assemble(self._entries, self._options)
        write_atomically(self.folder / self._format.whole, data)
        if complete:
            self._lines.path.unlink()

    def close(self) -> None:
        """Close the file of lines, if it is open."""
        self._lines.close()

    def _entries(self) -> Iterator[Entry]:
        lines = self._lines.read()
        next(lines)
        return (line["entry"] for line in lines)

    def _look(self, *, resume: bool) -> list[str]:
        """Return the names in the folder, if they are what a dataset of this format has."""
        if not self.folder.is_dir():
            return []
        there = sorted(each.name for each in self.folder.iterdir() if each.name[0] != ".")
        own = {*self._fixed, self._format.whole, self._format.images}
        own |= {UNFINISHED} if self._format.whole else set()
        if self._format.image_file is not None:
            own.add(Path(self._format.image_file("x")).parts[0])
        others = [name for name in there if name not in own]
        if others and not self._format.beside:
            raise UsageError(
                f"{one_line(self.folder)} holds {some(others)}, no part of a {self.title} dataset: "
                "choose an empty folder with -o"
            )
        if there and not resume and not self._format.beside:
            how = "--resume" if self._format.whole else "--skip-existing"
            raise UsageError(
                f"{one_line(self.folder)} has a {self.title} dataset: add {how} to go on with it, "
                "or choose another folder with -o"
            )
        for name, data in self._fixed.items():
            if name in there and (self.folder / name).read_bytes() != data:
                raise self._other(name)
        return there

    def _other(self, name: str) -> UsageError:
        return UsageError(
            f"{one_line(self.folder / name)} is of a run with other expressions or flags: repeat "
            "those, or choose another folder with -o"
        )

    def _name(self, image: InputImage) -> str:
        return Path(os.path.relpath(str(image.path), self._root)).as_posix()

    def _reference(self, image: InputImage) -> str:
        """Return what a format's file says of where the image is."""
        if self._format.whole:
            return f"{self._root.name}/{self._name(image)}"
        return Path(os.path.relpath(str(image.path), self._image_file(image).parent)).as_posix()

    def _image_file(self, image: InputImage) -> Path:
        assert self._format.image_file is not None
        return self.folder / self._format.image_file(image.stem)

    def _placed(self, image: InputImage) -> Path:
        """Return where the image is copied to."""
        assert image.path is not None
        suffix = image.path.suffix
        known = suffix.lower() in _READ_EVERYWHERE
        name = f"{image.stem}{suffix if known else '.png'}"
        return self.folder / str(self._format.images) / name

    def _own_files(self, image: InputImage) -> list[Path]:
        placed = [self._placed(image)] if self._format.images is not None else []
        return [self._image_file(image), *placed]


def _place(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it: whole or not at all."""
    temporary = target.with_name(f".{target.name[:40]}.tmp-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        link_or_copy(source, temporary)
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {target}: {one_line(reason)}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
