"""Which arguments are images and which are expressions, and which images a folder has."""

import glob
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
        below: its path below the folder, the list or the folder of the file that was named.
        expressions: what to find in it.
        id: its number in the list that names it, or None.
    """

    label: str
    stem: str
    path: Path | None
    below: Path
    expressions: tuple[str, ...] = ()
    id: int | None = None

    def open(self) -> ImageSource:
        """Return the source for `load_image`."""
        return sys.stdin.buffer if self.path is None else self.path


@dataclass(frozen=True)
class ListedImage:
    """An image of a list in `folder`: its path from there, what to find in it, its id or None."""

    folder: Path
    name: str
    expressions: tuple[str, ...]
    id: int | None


@dataclass(frozen=True)
class Inputs:
    """The images of a run in the order of the arguments.

    Attributes:
        images: those to work on.
        from_folder: whether some are of a folder, a pattern or a list.
        notes: lines about what was left out.
        skipped: images that have their results already.
    """

    images: tuple[InputImage, ...]
    from_folder: bool
    notes: tuple[str, ...]
    skipped: int = 0

    @property
    def several(self) -> bool:
        """Whether one may fail while the others go on."""
        return self.from_folder or len(self.images) + self.skipped > 1

    @property
    def files(self) -> list[Path]:
        """The images that are files."""
        return [image.path for image in self.images if image.path is not None]


def sort_arguments(
    arguments: Sequence[str],
    expressions: Sequence[str] = (),
    *,
    need_images: bool = True,
    need_expressions: bool = True,
) -> tuple[list[str], list[str]]:
    """Tell images from expressions.

    With expressions given by --expression all arguments are images. Otherwise an existing file or
    folder, or a pattern of some, is an image and everything else an expression, unless it could be
    either. With a list of images, or one of expressions, that kind may be missing.

    Raises:
        UsageError: an argument could be either, or one kind is missing; the message says how to
            write it.
    """
    images, found = [], list(expressions)
    for number, argument in enumerate(arguments):
        if expressions or _is_image(argument, first=number == 0 and need_images):
            images.append(argument)
        else:
            found.append(argument)
    named = ", ".join(map(_quoted, arguments[:_NAMED]))
    if need_images and not images:
        where = f" among {named}: no file or folder has that name" if arguments else ""
        raise UsageError(f"there is no image{where}; expected {_EXAMPLE}")
    if need_expressions and not found:
        raise UsageError(
            f"there is no expression: {named} {'exists' if len(arguments) == 1 else 'exist'}, so "
            f"they count as images; expected {_EXAMPLE}, or --expression TEXT"
        )
    return images, found


def find_inputs(
    arguments: Iterable[str],
    *,
    recursive: bool | None = None,
    expressions: Sequence[str] = (),
    listed: Sequence[ListedImage] = (),
) -> Inputs:
    """List the images: files, stdin, those of folders and patterns, sorted by name; then a list's.

    Results of `rism run` (names that end in `.mask.png` and the like) are skipped in folders, and
    in a list with other images. Hidden files and folders are skipped, too.

    Folders inside folders are read if `recursive`, which is None for a command without that flag.
    Images have the `expressions`, those of a list their own as well.

    Raises:
        InputError: a folder has no images, or stdin is closed or a terminal.
    """
    given = []
    notes = []
    from_folder = bool(listed)
    for argument in dict.fromkeys(arguments):
        if _is_pattern(argument):
            matches, left_out = _matching(argument)
            given += matches
            notes += left_out
            from_folder = True
        else:
            given.append(argument)
    results = [each for each in given if each.lower().endswith(_OUR_ENDINGS)]
    if len(given) > 1 and 0 < len(results) < len(given):
        notes.append(f"left out {some(results)}: earlier results, to be named one at a time")
        given = [each for each in given if each not in results]
    found: dict[str, InputImage] = {}  # by absolute path
    texts = tuple(expressions)
    for argument in given:
        path = Path(argument)
        if not argument:
            raise InputError("the name of an image is empty, expected a path")
        if argument == STDIN:
            _check_stdin()
            found[STDIN] = InputImage("-", "", None, Path("stdin"), texts)
        elif path.is_dir():
            from_folder = True
            files, left_out = _listed(path, recursive=recursive)
            notes += left_out
            for file in files:
                image = InputImage(str(file), "", file, file.relative_to(path), texts)
                found.setdefault(_absolute(file), image)
        else:
            image = InputImage(argument, "", path, Path(path.name), texts)
            found.setdefault(_absolute(path), image)
    for entry in listed:
        path = entry.folder / entry.name
        inside = not Path(entry.name).is_absolute() and ".." not in Path(entry.name).parts
        below = Path(entry.name if inside else path.name)
        image = InputImage(str(path), "", path, below, entry.expressions, entry.id)
        first = found.setdefault(_absolute(path), image)
        both = tuple(dict.fromkeys((*first.expressions, *entry.expressions)))
        found[_absolute(path)] = replace(first, expressions=both, id=entry.id)
    stems = _stems([image.below for image in found.values()])
    images = tuple(
        replace(image, stem=stem) for image, stem in zip(found.values(), stems, strict=True)
    )
    return Inputs(images, from_folder, tuple(notes))


def _is_pattern(argument: str) -> bool:
    """Whether an argument that does not exist is a pattern, such as 'photos/*.jpg'."""
    wild = "*" in argument or (
        ("?" in argument or "[" in argument) and argument.lower().endswith(SUFFIXES)
    )
    return wild and "\0" not in argument and not os.path.exists(argument)  # noqa: PTH110


def _matching(pattern: str) -> tuple[list[str], list[str]]:
    """Return the images that a pattern stands for, and a line about its other matches.

    Raises:
        InputError: there is none.
    """
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (absolute ones, too)
    images: list[str] = []
    others: list[str] = []
    for each in matches:
        name = each.lower()
        fits = name.endswith(SUFFIXES) and not name.endswith(_OUR_ENDINGS) and Path(each).is_file()
        (images if fits else others).append(each)
    if not images:
        raise InputError(f"no image matches {_quoted(pattern)}: check the pattern")
    names = some([Path(each).name for each in others])
    left_out = f"{_quoted(pattern)}: left out {names} (not images, or earlier results)"
    return images, [left_out] if others else []


def _is_image(argument: str, *, first: bool) -> bool:
    """Decide by what exists and by what the argument looks like; the two must agree."""
    if argument == STDIN or (_is_pattern(argument) and glob.glob(argument, recursive=True)):  # noqa: PTH207
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
    parts = [f"{some(others)} (not images)"] if others else []
    parts += [f"{results} earlier result{'s' * (results > 1)}"] if results else []
    if unread:
        why = "links are not followed" if recursive else "--recursive reads folders, too"
        parts.append(f"{some(unread)} ({'folders' if recursive is None else why})")
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


def some(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(one_line(name, limit=60) for name in names[:_NAMED]) + more


def _quoted(argument: str) -> str:
    return f"'{one_line(argument, limit=80)}'"
