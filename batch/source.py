"""What SOURCE is, checked before any work begins, and its rows, read one part at a time.

What has no id of its own, such as a line that is not JSON, stops a run before it begins. What has
one gets a row with its error.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileType

from rism.batch.readers import Unit, line_rows, parquet_rows, reading, tar_rows
from rism.batch.tables import READ, Digests, Store, contained, digests, table
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.loading import SUFFIXES

_ENDINGS = {
    "parquet": (".parquet", ".pq"),
    "JSONL": (".jsonl", ".ndjson"),
    "tar": (".tar",),
    "image": SUFFIXES,
}
_READERS = 16


@dataclass(frozen=True)
class Source:
    """A SOURCE that was looked at.

    Attributes:
        store: its place.
        kind: "parquet", "JSONL", "tar" or "image".
        units: what tasks read; of a folder of images, a unit for each.
        ids: a digest for each image, in the order of the units; None for tars, whose names are
            known when they are read.
        counts: images of each unit; None for tars.
        expressions: what to find in every image; None where rows have their own.
    """

    store: Store
    kind: str
    units: tuple[Unit, ...]
    ids: Digests | None
    counts: tuple[int, ...] | None
    expressions: tuple[str, ...] | None

    def left(self, done: Digests) -> tuple[list[Unit], int | None]:
        """Return the units that have images whose ids are not done, and how many these are.

        The number is None where the source is tars.
        """
        if self.ids is None or self.counts is None:
            return list(self.units), None
        new = ~contained(self.ids, done)
        ends = np.cumsum(self.counts)
        each = [
            int(np.count_nonzero(new[end - count : end]))
            for end, count in zip(ends, self.counts, strict=True)
        ]
        units = [unit for unit, count in zip(self.units, each, strict=True) if count]
        return units, sum(each)


def open_source(uri: str, expressions: Sequence[str] | None) -> Source:
    """Look at SOURCE: its kind, its columns and types, every id.

    Raises:
        InputError: it is not there, of no kind or several, or damaged; a column is missing or of
            a wrong type; an id is missing, or occurs twice; the expressions are given twice, or
            not at all.
    """
    store = Store.open(uri, "SOURCE")
    found = _list(store)
    kinds = {
        kind: [each for each in found if each.path.lower().endswith(endings)]
        for kind, endings in _ENDINGS.items()
    }
    kinds = {kind: files for kind, files in kinds.items() if files}
    if len(kinds) != 1:
        _no_kind(store, list(kinds))
    [(kind, files)] = kinds.items()
    whole = store.files.get_file_info(store.path).type == FileType.File
    folder = store.folder if whole else store
    units = [Unit(each.path, _relative(each.path, folder), 0, each.size) for each in files]
    given = None if not expressions else tuple(dict.fromkeys(expressions))
    if kind in ("image", "tar") and given is None and kind == "image":
        raise InputError("a folder of images needs --expression TEXT, once or several times")
    if kind == "tar":
        return Source(folder, kind, tuple(units), None, None, given)
    if kind == "image":
        names = digests(each.name for each in units)
        return Source(folder, kind, tuple(units), names, (1,) * len(units), given)
    survey = _survey_parquet if kind == "parquet" else _survey_lines
    with ThreadPoolExecutor(_READERS) as pool:
        surveys = list(pool.map(partial(survey, store, given is None), units))
    parts = tuple(unit for survey in surveys for unit, _ in survey)
    ids = [own for survey in surveys for _, own in survey]
    _refuse_duplicates(parts, ids)
    counts = tuple(len(own) for own in ids)
    if not sum(counts):
        raise InputError(f"SOURCE '{one_line(store.uri)}' has no rows, expected at least one")
    return Source(folder, kind, parts, np.concatenate(ids), counts, given)


def read_unit(
    unit: Unit, source_kind: str, store: Store, expressions: Sequence[str] | None, done: Digests
) -> Iterator[pa.Table]:
    """Read the rows of a unit whose ids are not done: tables with the columns of `READ`."""
    read = {"parquet": parquet_rows, "JSONL": line_rows, "tar": tar_rows}[source_kind]
    start = perf_counter()
    for rows in read(unit, store):
        new = ~contained(digests(row["id"] for row in rows), done)
        kept = [row for row, wanted in zip(rows, new, strict=True) if wanted]
        for row in kept:
            if expressions is not None:
                row["expressions"] = expressions
            row["expressions"], wrong = _clean(row.get("expressions"))
            row["error"] = row.get("error") or wrong
            row["read_s"] = (perf_counter() - start) / len(kept)
        if kept:
            yield table(kept, READ)
        start = perf_counter()


def _clean(given: object) -> tuple[list[str | None], str | None]:
    """Return a row's expressions, each once, and what is wrong with them."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
        return [None], f"expressions is {one_line(repr(given), limit=60)}, expected a list of texts"
    if not texts:
        return [None], "the list of expressions is empty, expected at least one"
    return list(dict.fromkeys(texts)), None


def _list(store: Store) -> list[FileInfo]:
    """List a file, or the files of a folder and of those in it, sorted; none that are hidden."""
    try:
        own = store.files.get_file_info(store.path)
        if own.type == FileType.Directory:
            below = store.files.get_file_info(FileSelector(store.path, recursive=True))
            files = [each for each in below if each.type == FileType.File]
        else:
            files = [own]
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"SOURCE '{one_line(store.uri)}' cannot be listed: {one_line(error, limit=120)}"
        ) from None
    if own.type != FileType.File and own.type != FileType.Directory:
        raise InputError(f"SOURCE '{one_line(store.uri)}' is not there: check the path")
    shown = [
        each
        for each in files
        if not any(part[0] in "._" for part in PurePosixPath(_relative(each.path, store)).parts)
    ]
    return sorted(shown if len(files) > 1 else files, key=lambda each: each.path)


def _relative(path: str, folder: Store) -> str:
    return path.removeprefix(folder.path).lstrip("/") or PurePosixPath(path).name


def _no_kind(store: Store, kinds: list[str]) -> NoReturn:
    name = one_line(store.uri)
    if kinds:
        raise InputError(
            f"SOURCE '{name}' has files of {len(kinds)} kinds ({', '.join(kinds)}), expected one: "
            "name the file itself, or a folder of one kind"
        )
    raise InputError(
        f"SOURCE '{name}' has nothing to read, expected .parquet, .jsonl or .tar files, or images"
    )


def _survey_parquet(store: Store, own_expressions: bool, unit: Unit) -> list[tuple[Unit, Digests]]:
    """Check a parquet file's columns, and return its row groups with the digests of their ids."""
    name = one_line(unit.name)
    with reading(unit):
        file = pq.ParquetFile(store.files.open_input_file(unit.path))
        columns = _parquet_columns(file.schema_arrow, own_expressions, name)
        found = []
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=columns[:1]).column(0)
            if ids.null_count:
                row = ids.is_null().to_pylist().index(True)
                raise InputError(
                    f"row {row} of row group {group} of {name} has no id, expected one in each row"
                )
            texts = ids.cast(pa.string()).to_pylist()
            found.append((Unit(unit.path, unit.name, group, unit.size), digests(texts)))
    return found


def _parquet_columns(schema: pa.Schema, own_expressions: bool, name: str) -> list[str]:
    """Return the names of the columns id, image and expressions (if rows have their own).

    Raises:
        InputError: one is missing, or of a wrong type, or needless.
    """
    rules = {
        "id": (_is_id, "text or whole numbers"),
        "image": (_is_image, "bytes, or paths as text"),
        "expressions": (_is_texts, "lists of texts"),
    }
    if not own_expressions:
        del rules["expressions"]
        if "expressions" in schema.names:
            raise InputError(
                f"{name} has a column expressions, and --expression is given: expected one of them"
            )
    for column, (fits, expected) in rules.items():
        if column not in schema.names:
            hint = ", or --expression TEXT for all rows" if column == "expressions" else ""
            raise InputError(
                f"{name} has no column {column} (it has {one_line(', '.join(schema.names))}), "
                f"expected {', '.join(rules)}{hint}"
            )
        if schema.names.count(column) > 1:
            raise InputError(f"{name} has two columns {column}, expected one")
        kind = schema.field(column).type
        if not fits(kind):
            raise InputError(
                f"column {column} of {name} is of type {one_line(kind, limit=60)}, expected "
                f"{expected}"
            )
    return list(rules)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_id(kind: Any) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_texts(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if lists else kind)


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):  # {bytes, path}, as Hugging Face's datasets write it
        own = {field.name: field.type for field in kind}
        return set(own) == {"bytes", "path"} and not _is_text(own["bytes"])
    return _is_text(kind) or bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _survey_lines(store: Store, own_expressions: bool, unit: Unit) -> list[tuple[Unit, Digests]]:
    """Check every line of a JSONL file, and return the file with the digests of its ids."""
    with reading(unit):
        ids = [row["id"] for rows in line_rows(unit, store, own_expressions) for row in rows]
    return [(unit, digests(ids))]


def _refuse_duplicates(units: Sequence[Unit], ids: Sequence[Digests]) -> None:
    found = np.concatenate(ids)
    ordered = np.sort(found)
    [twice] = np.nonzero(ordered[1:] == ordered[:-1])
    if not len(twice):
        return
    order = np.argsort(found, kind="stable")
    ends = np.cumsum([len(own) for own in ids])

    def where(place: int) -> str:
        at = int(np.searchsorted(ends, place, side="right"))
        row = place - int(ends[at]) + len(ids[at])
        group = f" of row group {units[at].part}" if units[at].part else ""
        return f"row {row}{group} of {one_line(units[at].name)}"

    first, second = sorted((int(order[twice[0]]), int(order[twice[0] + 1])))
    more = "" if len(twice) == 1 else f"; {len(twice)} rows repeat an id"
    raise InputError(
        f"{where(second)} has the same id as {where(first)}, expected every id once{more}"
    )
