"""records.jsonl: a run's header, and a line for each sample that is scored.

Lines are only ever added, those of a picture at once, so whatever ends a run leaves whole
pictures and at most one broken off, which `resume` removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rism.evaluation.records import Record, Run, parse_record, parse_run
from rism.runtime.errors import InputError, OutputError, one_line

__all__ = [
    "RECORDS",
    "REPORT",
    "RESULT",
    "append",
    "begin",
    "read_records",
    "read_run",
    "resume",
]

RECORDS = "records.jsonl"
REPORT = "report.html"
RESULT = "result.json"
_MAX_LINE_BYTES = 64 * 2**20


def begin(folder: Path, run: Run) -> None:
    """Write a new file of records without any, in the place of what was there.

    Raises:
        OutputError: the folder takes no files.
    """
    _write(folder / RECORDS, run.to_json() + "\n", "w")


def append(folder: Path, records: Iterable[Record]) -> None:
    """Add the records of a picture, and wait until they are out of this process.

    Raises:
        OutputError: the disk is full, for example.
    """
    _write(folder / RECORDS, "".join(record.to_json() + "\n" for record in records), "a")


def resume(folder: Path, run: Run, pictures: Mapping[str, set[str]]) -> set[str]:
    """Make an earlier file of records ready to be continued, and return the keys that it has.

    A line that broke off goes, and so do the last picture's records where some are missing:
    expressions of a picture are asked together, in the same runs of the transformer whether or
    not they were interrupted.

    Args:
        folder: where it is; without a file a new one is begun.
        run: what is to be continued.
        pictures: keys of the samples of every picture.

    Raises:
        InputError: the records are of another run, and how it differs; or they are damaged.
    """
    file = folder / RECORDS
    if not file.exists():
        begin(folder, run)
        return set()
    with file.open("rb") as stream:
        first = stream.readline(_MAX_LINE_BYTES)
        whole = first.endswith(b"\n")
        if not whole and run.to_json().encode().startswith(first[:20]):
            first = b""  # it ended before its first line did
    if not first:
        begin(folder, run)
        return set()
    earlier = parse_run(first, f"{file} line 1")
    found = run.differences(earlier)
    if found:
        raise InputError(
            f"{folder} has records of another run ({'; '.join(found)}): choose another folder "
            "with --output, or start over with --restart"
        )
    done: dict[str, str] = {}
    end = picture_at = len(first)
    image, keys = None, set[str]()
    for line, record in _records(file):
        if record.key in done or record.key not in pictures.get(record.image, ()):
            what = "twice" if record.key in done else "of another dataset"
            raise InputError(f"{file} has sample '{one_line(record.key)}' {what}: use --restart")
        if record.image != image:
            image, keys, picture_at = record.image, set(), end
        keys.add(record.key)
        done[record.key] = record.image
        end += len(line)
    if image is not None and keys != pictures[image]:
        end = picture_at
        done = {key: of for key, of in done.items() if key not in keys}
    with file.open("r+b") as stream:
        stream.truncate(end)
    return set(done)


def read_run(folder: Path) -> Run:
    """Read what a folder's records are of.

    Raises:
        InputError: there are none, or they are damaged.
    """
    file = folder / RECORDS
    try:
        with file.open("rb") as stream:
            return parse_run(stream.readline(_MAX_LINE_BYTES), f"{file} line 1")
    except FileNotFoundError:
        raise InputError(
            f"{one_line(folder)} has no {RECORDS}, expected a folder that rism eval wrote"
        ) from None


def read_records(folder: Path) -> Iterator[Record]:
    """Read a folder's records one by one; a line that broke off is left out.

    Raises:
        InputError: a line is no record.
    """
    for _, record in _records(folder / RECORDS):
        yield record


def _records(file: Path) -> Iterator[tuple[bytes, Record]]:
    """Records with their lines."""
    with file.open("rb") as stream:
        stream.readline(_MAX_LINE_BYTES)
        number = 1
        while line := stream.readline(_MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) == _MAX_LINE_BYTES:
                    raise InputError(f"{file} line {number} is too long to be a record")
                return
            yield line, parse_record(line, f"{file} line {number}")


def _write(file: Path, text: str, mode: str) -> None:
    try:
        with file.open(mode, encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from error
