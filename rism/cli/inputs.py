"""Which arguments are images and which are expressions, and which images a folder has."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.cli.console import UsageError
from rism.cli.file_names import distinct, file_stem, fold
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import SUFFIXES, ImageSource
from rism.runtime.result.rendering import KINDS

STDIN = "-"
_OUR_ENDINGS = tuple(f".{kind}.png" for kind in KINDS)
_NAMED = 3
_EXAMPLE = "images and expressions, such as street.png 'the green van'"


@dataclass(frozen=True)
class InputImage:
    """One image to read.

    Attributes:
        label: its name in messages and JSON.
        stem: the beginning of its results' paths, relative to the folder of results.
        path: the file; None for stdin.
    """

    label: str
    stem: str
    path: Path | None

    def open(self) -> ImageSource:
        """Return the source for `load_image`."""
        return sys.stdin.buffer if self.path is None else self.path


@dataclass(frozen=True)
class Inputs:
    """The images of a run in the order of the arguments, and lines about what was left out."""

    images: tuple[InputImage, ...]
    from_folder: bool
    notes: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether one may fail while the others go on."""
        return self.from_folder or len(self.images) > 1

    @property
    def files(self) -> list[Path]:
        """The images that are files."""
        return [image.path for image in self.images if image.path is not None]


def sort_arguments(
    arguments: Sequence[str], expressions: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Tell images from expressions.

    With expressions given by --expression all arguments are images. Otherwise an existing file or
    folder is an image and everything else an expression, unless it could be either.

    Raises:
        UsageError: an argument could be either, or one kind is missing; the message says how to
            write it.
    """
    images, found = [], list(expressions)
    for number, argument in enumerate(arguments):
        if expressions or _is_image(argument, first=number == 0):
            images.append(argument)
        else:
            found.append(argument)
    named = ", ".join(map(_quoted, arguments[:_NAMED]))
    if not images:
        where = f" among {named}: no file or folder has that name" if arguments else ""
        raise UsageError(f"there is no image{where}; expected {_EXAMPLE}")
    if not found:
        raise UsageError(
            f"there is no expression: {named} {'exists' if len(arguments) == 1 else 'exist'}, so "
            f"they count as images; expected {_EXAMPLE}, or --expression TEXT"
        )
    return images, found


def find_inputs(arguments: Iterable[str], *, recursive: bool | None = None) -> Inputs:
    """List the images: files, stdin, and those of folders, sorted by name.

    Results of `rism run` (names that end in `.mask.png` and the like) are skipped in folders, and
    in a list with other images. Hidden files and folders are skipped, too.

    Folders inside folders are read if `recursive`, which is None for a command without that flag.

    Raises:
        InputError: a folder has no images, or stdin is closed or a terminal.
    """
    given = list(dict.fromkeys(arguments))
    results = [each for each in given if each.lower().endswith(_OUR_ENDINGS)]
    notes = []
    if len(given) > 1 and 0 < len(results) < len(given):
        notes.append(f"left out {_some(results)}: earlier results, to be named one at a time")
        given = [each for each in given if each not in results]
    # By absolute path: the label, the path, and the path relative to the argument.
    found: dict[str, tuple[str, Path | None, Path]] = {}
    from_folder = False
    for argument in given:
        path = Path(argument)
        if not argument:
            raise InputError("the name of an image is empty, expected a path")
        if argument == STDIN:
            _check_stdin()
            found[STDIN] = ("-", None, Path("stdin"))
        elif path.is_dir():
            from_folder = True
            files, left_out = _listed(path, recursive=recursive)
            notes += left_out
            for file in files:
                found.setdefault(_absolute(file), (str(file), file, file.relative_to(path)))
        else:
            found.setdefault(_absolute(path), (argument, path, Path(path.name)))
    stems = _stems([name for _, _, name in found.values()])
    images = tuple(
        InputImage(label, stem, path)
        for (label, path, _), stem in zip(found.values(), stems, strict=True)
    )
    return Inputs(images, from_folder, tuple(notes))


def _is_image(argument: str, *, first: bool) -> bool:
    """Decide by what exists and by what the argument looks like; the two must agree."""
    if argument == STDIN:
        return True
    # Expressions do not look like this.
    like_a_path = (
        argument.lower().endswith((*SUFFIXES, "/", os.sep))
        or argument.startswith(("/", "./", "../", "~/"))
        or argument in (".", "..")
        or "*" in argument
    )
    if not os.path.exists(argument):  # noqa: PTH110  (Path's own fails for long expressions)
        if like_a_path:
            raise UsageError(
                f"{_quoted(argument)} does not exist and looks like an image: check the path, "
                f"or, if it is an expression, write --expression {shlex.quote(argument)}"
            )
        return False
    if first or like_a_path or os.sep in argument:
        return True
    kind = "folder" if Path(argument).is_dir() else "file"
    raise UsageError(
        f"{_quoted(argument)} may be an expression or the {kind} of that name: write --expression "
        f"{shlex.quote(argument)} or {shlex.quote(f'.{os.sep}{argument}')}"
    )


def _absolute(path: Path) -> str:
    """Return one spelling for a/b and ./a/c/../b, but another for a link to it."""
    return os.path.abspath(path)  # noqa: PTH100  (Path.resolve follows links)


def _check_stdin() -> None:
    if sys.stdin is None:
        raise InputError("IMAGE is -, but stdin is closed: pipe an image into it")
    if sys.stdin.isatty():
        raise InputError("IMAGE is -, but stdin is a terminal: pipe an image into it")


def _listed(folder: Path, *, recursive: bool | None) -> tuple[list[Path], list[str]]:
    """Return the images of a folder, and a line about the rest of its contents."""
    images: list[Path] = []
    others: list[str] = []
    unread: list[str] = []
    results = 0
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(each for each in folders if not _hidden(each))
        # Links to folders are not followed: they may lead back here.
        entered = [each for each in folders if recursive and not Path(place, each).is_symlink()]
        unread += [each for each in folders if each not in entered]
        folders[:] = entered
        for name in sorted(each for each in names if not _hidden(each)):
            if name.lower().endswith(_OUR_ENDINGS):
                results += 1
            elif name.lower().endswith(SUFFIXES) and Path(place, name).is_file():
                images.append(Path(place, name))
            else:
                others.append(name)
    parts = [f"{_some(others)} (not images)"] if others else []
    parts += [f"{results} earlier result{'s' * (results > 1)}"] if results else []
    if unread:
        why = "links are not followed" if recursive else "--recursive reads folders, too"
        parts.append(f"{_some(unread)} ({'folders' if recursive is None else why})")
    note = f"{one_line(folder)}: left out {', '.join(parts)}"
    if not images:
        raise InputError(
            f"folder {one_line(folder)} has no images, expected names in {' '.join(SUFFIXES)}"
            + (f"; {note}" if parts else "")
        )
    return images, [note] if parts else []


def _refuse(error: OSError) -> None:
    reason = error.strerror or error
    raise InputError(f"cannot list folder {one_line(error.filename)}: {reason}")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _stems(names: Sequence[Path]) -> list[str]:
    """Return the names without suffix, or with it where there are cat.jpg and cat.png."""
    times = Counter(fold(str(name.with_suffix(""))) for name in names)
    made = []
    for name in names:
        alone = times[fold(str(name.with_suffix("")))] == 1
        made.append(str(name.with_name(file_stem(name.stem if alone else name.name))))
    return distinct(made)


def _some(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(one_line(name, limit=60) for name in names[:_NAMED]) + more


def _quoted(argument: str) -> str:
    return f"'{one_line(argument, limit=80)}'"
