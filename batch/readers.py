"""The rows of parquet files, JSON lines and WebDataset tars, a few at a time."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rism.batch.tables import READ, Store
from rism.runtime.errors import InputError, one_line
from rism.runtime.image.formats import MAX_FILE_BYTES
from rism.runtime.image.loading import SUFFIXES

# Rows that are read together, and images that a task is given.
ROWS_AT_ONCE = 32
_MOST_LINE_BYTES = 2**24
_MOST_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Unit:
    """A piece of SOURCE that one task reads.

    Attributes:
        path: of the file, inside the store.
        name: of the file, relative to SOURCE.
        part: row group of a parquet file; else 0.
        size: bytes of the file when SOURCE was looked at: what is appended later is not read.
    """

    path: str
    name: str
    part: int
    size: int


@contextmanager
def reading(unit: Unit) -> Iterator[None]:
    """Turn errors of a file's reader into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{one_line(unit.name)} cannot be read ({one_line(error, limit=100)}): write it again"
        ) from None


def parquet_rows(unit: Unit, store: Store) -> Iterator[list[dict[str, Any]]]:
    """Read a row group; of rows that are damaged only the ids are known."""
    with reading(unit):
        file = pq.ParquetFile(store.files.open_input_file(unit.path))
        names = [each for each in READ.names if each in file.schema_arrow.names]
        done = 0
        try:
            for batch in file.iter_batches(
                batch_size=ROWS_AT_ONCE, row_groups=[unit.part], columns=names
            ):
                done += len(batch)
                yield [_parquet_row(row) for row in batch.to_pylist()]
        except (OSError, pa.ArrowException) as error:
            # The ids were read before; other columns are damaged.
            ids = file.read_row_group(unit.part, columns=["id"]).column(0)[done:]
            why = f"its row cannot be read: {one_line(error, limit=100)}"
            yield [{"id": str(each), "expressions": [], "error": why} for each in ids.to_pylist()]


def _parquet_row(row: dict[str, Any]) -> dict[str, Any]:
    image, path = row["image"], None
    if isinstance(image, dict):
        path = image.get("path") if image["bytes"] is None else None
        image = image["bytes"]
    if isinstance(image, str):
        image, path = None, image
    error = "its image is null" if image is None and path is None else None
    return {**row, "id": str(row["id"]), "image": image, "path": path, "error": error}


def line_rows(
    unit: Unit, store: Store, own_expressions: bool | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Read the lines of a JSONL file; the survey says whether they should have expressions."""
    rows: list[dict[str, Any]] = []
    number, left = 0, unit.size
    with store.files.open_input_stream(unit.path) as data, BufferedReader(data) as file:
        while left > 0:
            number += 1
            line = file.readline(min(left, _MOST_LINE_BYTES))
            left -= len(line) or left
            where = f"line {number} of {one_line(unit.name)}"
            if line.strip():
                rows.append(_line_row(line, where, own_expressions))
            if len(rows) == ROWS_AT_ONCE:
                yield rows
                rows = []
    if rows:
        yield rows


def _line_row(line: bytes, where: str, own_expressions: bool | None) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON, expected an object of at most 16 MiB") from None
    name = record.get("id") if isinstance(record, dict) else None
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise InputError(f'{where} has no id, expected {{"id": TEXT, "image": PATH, ...}}')
    try:
        str(name).encode()
    except (UnicodeEncodeError, ValueError):
        raise InputError(f"{where} has an id that is not valid Unicode") from None
    if own_expressions and "expressions" not in record:
        raise InputError(f"{where} has no expressions, expected a list, or --expression TEXT")
    if own_expressions is False and "expressions" in record:
        raise InputError(f"{where} has expressions, and --expression is given: expected one")
    path = record.get("image")
    good = isinstance(path, str)
    return {
        "id": str(name),
        "path": path if good else None,
        "expressions": record.get("expressions"),
        "error": None if good else "its image is no path, expected one as text",
    }


def tar_rows(unit: Unit, store: Store) -> Iterator[list[dict[str, Any]]]:
    """Read a WebDataset tar: files of one image follow each other, named KEY.EXTENSION.

    Nothing is unpacked to disk. An id is the tar's name, a slash and the key.
    """
    rows: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    row: dict[str, Any] = {}
    error = None
    try:
        with (
            store.files.open_input_stream(unit.path) as data,
            tarfile.open(fileobj=data, mode="r|", errors="backslashreplace") as tar,
        ):
            for member in tar:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                key, extension = _tar_key(member.name)
                if not row or row["key"] != key:
                    rows += [row] if row else []
                    row = _tar_row(unit, key, seen)
                    if len(rows) >= ROWS_AT_ONCE:
                        yield rows
                        rows = []
                _read_member(row, extension, member, tar.extractfile(member))
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header
    except (OSError, tarfile.TarError, pa.ArrowException, EOFError) as why:
        error = f"the tar is damaged, later images are lost: {one_line(why, limit=100)}"
    rows += [row] if row else []
    if error or not seen:
        rows.append({"id": unit.name, "expressions": [], "error": error or "the tar is empty"})
    yield rows


def _tar_key(name: str) -> tuple[str, str]:
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _tar_row(unit: Unit, key: str, seen: Counter[str]) -> dict[str, Any]:
    seen[key] += 1
    row: dict[str, Any] = {"id": f"{unit.name}/{key}", "key": key, "expressions": None}
    row["error"] = "the tar has no image for this key"
    if seen[key] > 1:
        row |= {
            "id": f"{unit.name}/{key}#{seen[key]}",
            "error": f"the key occurs {seen[key]} times in the tar, its files must lie together",
            "twice": True,
        }
    return row


def _read_member(row: dict[str, Any], extension: str, member: tarfile.TarInfo, data: Any) -> None:
    if "twice" in row or data is None:
        return
    if f".{extension}".endswith(SUFFIXES):
        if member.size > MAX_FILE_BYTES:
            row["error"] = "the image file is larger than 512 MiB: make it smaller first"
        else:
            row["image"], row["error"] = data.read(), None
    elif extension in ("json", "txt") and member.size <= _MOST_TEXT_BYTES:
        row["expressions"] = _member_expressions(extension, data) or row["expressions"]


def _member_expressions(extension: str, data: BinaryIO) -> object:
    """Return expressions from KEY.json, {"expressions": [...]}, or KEY.txt, one a line."""
    text = data.read().decode(errors="replace")
    if extension == "txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record.get("expressions") if isinstance(record, dict) else None
