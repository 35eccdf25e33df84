"""Where results are written."""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rism.cli.console import UsageError
from rism.cli.file_names import fold, joined
from rism.runtime.errors import OutputError, one_line
from rism.runtime.image.loading import SUFFIXES
from rism.runtime.result.rendering import KINDS, Kind

STDOUT = ("-", "/dev/stdout")
_DEFAULT_KINDS: tuple[Kind, ...] = ("mask", "overlay")


@dataclass(frozen=True)
class Destination:
    """What one run writes.

    Attributes:
        kinds: kinds of image per expression; empty if only JSON is written.
        folder: the folder of images that are named after their input, or None.
        file: the file of the only image, or None.
        to_stdout: whether the only image goes to stdout.
        json_file: the JSON file, or None.
        lines_file: the file that each result is appended to as a line of JSON, or None.
        json_stdout: whether JSON goes to stdout.
        json_lines: whether that is a line for each result at once, not a list at the end.
    """

    kinds: tuple[Kind, ...] = ()
    folder: Path | None = None
    file: Path | None = None
    to_stdout: bool = False
    json_file: Path | None = None
    lines_file: Path | None = None
    json_stdout: bool = False
    json_lines: bool = False

    @property
    def as_json(self) -> bool:
        """Whether results are written as JSON anywhere."""
        return self.json_file is not None or self.lines_file is not None or self.json_stdout

    def path(self, stem: str, slugs: Sequence[str], at: int, kind: Kind) -> Path:
        """Return the file of one image: of the result `at`, or of all results together.

        `slugs` are the expressions of that image as parts of file names.
        """
        if self.file is not None or self.folder is None:
            return self.file or Path(os.devnull)
        slug = joined(slugs) if kind == "overlay" and len(slugs) > 1 else slugs[at]
        return self.folder / f"{stem}.{slug}.{kind}.png"

    def image_paths(self, stem: str, slugs: Sequence[str]) -> list[Path]:
        """Return the files of one image."""
        if self.folder is None:
            return [] if self.file is None else [self.file]
        named = ((at, kind) for at in range(len(slugs)) for kind in self.kinds)
        return list(dict.fromkeys(self.path(stem, slugs, at, kind) for at, kind in named))

    def paths(self, images: Iterable[tuple[str, Sequence[str]]]) -> list[Path]:
        """Return every file of a run, for the stem and the slugs of each image."""
        files = [file for file in (self.file, self.json_file, self.lines_file) if file is not None]
        if self.folder is not None:
            files += [path for stem, slugs in images for path in self.image_paths(stem, slugs)]
        return files

    def prepare(self, files: Iterable[Path]) -> None:
        """Make the folders of all files, and fail before the work where nothing can be written.

        Raises:
            OutputError: a folder is missing, cannot be made or cannot be written to, or stdout
                is closed.
        """
        if (self.to_stdout or self.json_stdout) and sys.stdout is None:
            raise OutputError("results go to stdout, which is closed: use -o FILE")
        make_folders(files if self.folder else ())
        for file in (self.file, self.json_file, self.lines_file):
            if file is not None:
                _check_writable(file if file.exists() else file.parent)


def make_folders(files: Iterable[Path]) -> None:
    """Make the folders of files.

    Raises:
        OutputError: one cannot be made or cannot be written to.
    """
    for folder in dict.fromkeys(file.parent for file in files):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"cannot make folder {one_line(folder)}: {reason}") from None
        _check_writable(folder)


def choose_destination(
    output: str | None,
    *,
    save: str | None,
    as_json: bool,
    json_lines: bool = False,
    images: int,
    expressions: int,
    from_folder: bool,
) -> Destination:
    """Read -o, --save, --json and --jsonl together, for a number of images and of expressions.

    Raises:
        UsageError: they do not go together; the message says what to write instead.
    """
    if as_json and json_lines:
        raise UsageError("--json and --jsonl both want stdout: drop one of them")
    chosen = None if save is None else _parse_kinds(save)
    one_each = chosen == ("overlay",) or expressions == 1
    many = from_folder or images > 1 or not one_each
    if output is None:
        found = _without_output(chosen, as_json or json_lines, from_folder)
    elif output in STDOUT:
        found = _to_stdout(output, _single(chosen, many, f"-o {output}"))
    else:
        found = _to_place(output, chosen, many)
    if as_json or json_lines:
        if found.to_stdout:
            raise UsageError(f"-o {output} and --json both want stdout: drop one of them")
        return replace(found, json_stdout=True, json_lines=json_lines)
    return found


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path | int]) -> list[Path]:
    """Refuse to overwrite an input, or one output by another, under whatever names.

    Links are followed, hard links count as one file, and so do names that a file system might
    not tell apart. Devices are allowed.

    Args:
        outputs: files that a run will write; some of them may exist.
        inputs: files that it reads, or their descriptors.

    Returns:
        The outputs that exist.

    Raises:
        UsageError: the run would destroy an input, or one of its own results.
    """
    read = {found: name for name in inputs if (found := _identity(name)) is not None}
    folders: dict[Path, str] = {}
    places: dict[str, Path] = {}
    there = []
    for output in outputs:
        found = _identity(output)
        if found is not None:
            there.append(output)
            if (name := read.get(found)) is not None:
                same = "stdin" if isinstance(name, int) else f"'{one_line(name)}'"
                raise UsageError(
                    f"'{one_line(output)}' is an input ({same}) and would be replaced by a "
                    "result: choose another place with -o"
                )
        elif output.exists():
            continue  # a device, or a folder, which is refused elsewhere
        if output.is_symlink():
            place = os.path.realpath(output)
        else:
            parent = output.parent
            if parent not in folders:
                folders[parent] = os.path.realpath(parent)
            place = f"{folders[parent]}{os.sep}{output.name}"
        if (other := places.setdefault(fold(place), output)) is not output:
            raise UsageError(
                f"'{one_line(output)}' and '{one_line(other)}' are one file, two results would "
                "go to it: choose another place with -o"
            )
    return there


def _identity(name: Path | int) -> tuple[int, int] | None:
    """Return what identifies a regular file; None for anything else."""
    try:
        found = os.stat(name)  # noqa: PTH116  (it may be a descriptor)
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _without_output(
    chosen: tuple[Kind, ...] | None, as_json: bool, from_folder: bool
) -> Destination:
    if as_json and chosen is None:
        return Destination()
    if from_folder:
        raise UsageError("a folder of images needs a folder for its results: add -o DIR/")
    return Destination(kinds=chosen or _DEFAULT_KINDS, folder=Path())


def _to_stdout(output: str, kinds: tuple[Kind, ...]) -> Destination:
    if sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(_to_a_terminal(output))
    return Destination(kinds=kinds, to_stdout=True)


def _to_place(output: str, chosen: tuple[Kind, ...] | None, many: bool) -> Destination:
    path, suffix = Path(output), Path(output).suffix.lower()
    is_folder = path.is_dir() or output.endswith(("/", os.sep))
    # A device such as /dev/stdout has no suffix.
    is_device = path.exists() and not path.is_file() and not is_folder
    if suffix in (".json", ".jsonl") and not is_folder:
        if chosen is not None:
            raise UsageError(f"-o {output} holds results only: for images too, -o DIR/ --json")
        return Destination(lines_file=path) if suffix == ".jsonl" else Destination(json_file=path)
    if is_folder or (many and suffix not in SUFFIXES and not is_device):
        return Destination(kinds=chosen or _DEFAULT_KINDS, folder=path)
    kinds = _single(chosen, many, f"-o {output}")
    if suffix != ".png" and not is_device:
        raise UsageError(
            f"-o {output}: end it in .png for an image, .json for results, / for a folder"
        )
    if is_device and _is_terminal(path):
        raise UsageError(_to_a_terminal(output))
    return Destination(kinds=kinds, file=path)


def _is_terminal(device: Path) -> bool:
    if not device.is_char_device():  # a pipe would wait for its reader
        return False
    try:
        descriptor = os.open(device, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    except OSError:
        return False
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def _to_a_terminal(output: str) -> str:
    return f"-o {output} writes the bytes of a PNG to a terminal: use -o FILE.png, or a pipe"


def _parse_kinds(save: str) -> tuple[Kind, ...]:
    asked = {part.strip() for part in save.split(",")}
    if asked == {"all"}:
        return KINDS
    unknown = sorted(asked.difference(KINDS))
    if unknown:
        raise UsageError(f"--save has '{unknown[0]}', expected some of {','.join(KINDS)}, or all")
    return tuple(kind for kind in KINDS if kind in asked)


def _single(chosen: tuple[Kind, ...] | None, many: bool, flag: str) -> tuple[Kind, ...]:
    """Return the only kind of image, for a single file."""
    kinds: tuple[Kind, ...] = chosen or ("mask",)
    if many or len(kinds) > 1:
        raise UsageError(f"{flag} takes one image, this run makes several: use -o DIR/")
    return kinds


def _check_writable(path: Path) -> None:
    if not path.exists():
        raise OutputError(f"folder {path} does not exist: make it first (mkdir -p {path})")
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write to {path}: no permission, or a read-only place")
