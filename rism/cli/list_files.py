"""Files that say which images and expressions a run has, and what its categories are."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rism.cli.inputs import ListedImage
from rism.runtime.errors import InputError, one_line
from rism.runtime.prompt.encoder import clean_expression

_MOST_BYTES = 2**28
_JSON_LINES = (".jsonl", ".ndjson")
_LINE = '{"image": "a.jpg", "expressions": ["the green van"]}'


@dataclass(frozen=True)
class Categories:
    """The categories of a dataset: their names, and the index of each expression's."""

    names: tuple[str, ...]
    indices: Mapping[str, int]


def clean_expressions(texts: Iterable[str]) -> list[str]:
    """Check expressions as the segmenter will, before anything is loaded.

    Raises:
        InputError: one is empty, too long, or has control characters.
    """
    return [clean_expression(text) for text in texts]


def read_list(file: Path, expressions: Sequence[str]) -> list[ListedImage]:
    """Read a list of images, with expressions for each or for all.

    A line of a `.jsonl` is {"image", "expressions" or "expression", "id"}, the latter two optional;
    of any other file it is a path and the expressions for it, separated by tabs. Paths are relative
    to the folder of the list. Lines without expressions have the given ones. Empty lines are
    ignored, and lines of one image belong together.

    Raises:
        InputError: the file or a line cannot be read, an image has no expression, an id is that of
            another image, or only some images have one.
    """
    read = _read_json if file.suffix.lower() in _JSON_LINES else _read_text
    found: dict[str, ListedImage] = {}
    lines: dict[object, str] = {}
    for where, line in _lines(file):
        try:
            name, own, number = read(line)
            texts = clean_expressions(own) or list(expressions)
            if not texts:
                raise InputError("there is no expression, in the line or as an argument")
            if not name or "\0" in name:
                raise InputError("there is no path of an image")
            first = found.get(name)
            if first is not None and first.id != number:
                raise InputError(f"{lines[name]} gives the same image another id")
            if first is None and number is not None and number in lines:
                raise InputError(f"its id {number} is that of {lines[number]}")
        except InputError as error:
            raise InputError(f"'{one_line(file)}', {where}: {error}") from None
        lines.setdefault(name, where)
        lines.setdefault(number, where)
        both = (*(() if first is None else first.expressions), *texts)
        found[name] = ListedImage(file.parent, name, tuple(dict.fromkeys(both)), number)
    if not found:
        raise InputError(f"'{one_line(file)}' lists no image, expected lines such as {_LINE}")
    without = [name for name, each in found.items() if each.id is None]
    if without and len(without) < len(found):
        raise InputError(
            f"'{one_line(file)}', {lines[without[0]]} has no id and others have: give all images "
            "an id, or none"
        )
    return list(found.values())


def read_names(file: Path) -> Categories:
    """Read the categories: lines of NAME, or NAME: EXPRESSION, in the order of their numbers.

    Lines of one name are one category with several expressions.

    Raises:
        InputError: the file cannot be read, or an expression has two lines.
    """
    names: dict[str, int] = {}
    indices: dict[str, int] = {}
    lines: dict[str, str] = {}
    for where, line in _lines(file):
        try:
            name, _, text = line.partition(":")
            name = clean_expression(name, what="the name")
            expression = clean_expression(text) if text.strip() else name
            if expression in lines:
                raise InputError(
                    f"'{one_line(expression, limit=60)}' is the expression of {lines[expression]}"
                )
        except InputError as error:
            raise InputError(f"'{one_line(file)}', {where}: {error}") from None
        lines[expression] = where
        indices[expression] = names.setdefault(name, len(names))
    if not names:
        raise InputError(f"'{one_line(file)}' has no names, expected a line NAME: EXPRESSION each")
    return Categories(tuple(names), indices)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not empty, each after its number, as "line 3"."""
    name = f"'{one_line(file)}'"
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{name} is larger than {_MOST_BYTES // 2**20} MiB: split it")
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number}", line.rstrip("\r\n")
    except OSError as error:
        raise InputError(
            f"{name} cannot be read ({one_line(error.strerror or error)}): check the path"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8: save it as UTF-8") from None


def _read_text(line: str) -> tuple[str, list[str], None]:
    name, *texts = line.split("\t")
    return name.strip(), [text for text in texts if text.strip()], None


def _read_json(line: str) -> tuple[str, list[str], int | None]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({one_line(error, limit=80)})") from None
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise InputError(f"it has no text 'image', expected {_LINE}")
    texts, number = data.get("expressions", data.get("expression", [])), data.get("id")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or (not texts and {"expression", "expressions"} & data.keys()):
        raise InputError("its 'expressions' are no list of texts, or an empty one")
    if number is not None and (type(number) is not int or not 0 <= number < 2**53):
        raise InputError(f"its id is {one_line(repr(number), limit=40)}, expected a whole number")
    return data["image"], texts, number
