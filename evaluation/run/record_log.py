"""records.jsonl: a run's header, and a line for each sample that is scored.

Lines are only ever added, those of a picture at once, so whatever ends a run leaves whole
pictures and at most one broken off, which `resume` removes.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rism.evaluation.datasets.sample import Sample
from rism.evaluation.run.records import Record, Run, parse_record, parse_run
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


def resume(folder: Path, run: Run, pictures: Mapping[str, Sequence[Sample]]) -> set[str]:
    """Make an earlier file of records ready to be continued, and return the keys that it has.

    A line that broke off goes, and so do the last picture's records where some are missing:
    expressions of a picture are asked together, in the same runs of the transformer whether or
    not they were interrupted. The dataset may have more samples than it had: its limit was
    raised, or pictures that were missing were brought.

    Args:
        folder: where it is; without a file a new one is begun.
        run: what is to be continued.
        pictures: the samples of every picture.

    Raises:
        InputError: the records are of another run, and how it differs; or they are damaged.
    """
    file = folder / RECORDS
    header = _first_line(file, run)
    if header is None:
        begin(folder, run)
        return set()
    earlier = parse_run(header, f"{file} line 1")
    found = run.differences(earlier, ignore=("samples", "samples digest"))
    if found:
        raise InputError(
            f"{folder} has records of another run ({'; '.join(found)}): choose another folder "
            "with --output, or start over with --restart"
        )
    done, end = _whole_pictures(file, len(header), pictures)
    with file.open("r+b") as stream:
        stream.truncate(end)
    if run.differences(earlier):
        _replace_header(file, replace(run, started=earlier.started, machine=earlier.machine))
    return done


def _first_line(file: Path, run: Run) -> bytes | None:
    """Read a file's header; None where there is none, or where it broke off."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(_MAX_LINE_BYTES)
    except FileNotFoundError:
        return None
    broke_off = not first.endswith(b"\n") and run.to_json().encode().startswith(first[:20])
    return None if broke_off else first


def _whole_pictures(
    file: Path, end: int, pictures: Mapping[str, Sequence[Sample]]
) -> tuple[set[str], int]:
    """Return the keys of a file's records up to where its last picture is whole, and that place.

    Args:
        file: with records.
        end: of its header, in bytes.
        pictures: the samples of every picture.
    """
    samples = {sample.key: sample for group in pictures.values() for sample in group}
    done: set[str] = set()
    image, keys, picture_at = None, set[str](), end
    for line, record in _records(file):
        if record.key in done or samples.get(record.key) != record.sample:
            what = "twice" if record.key in done else "that is not in this dataset"
            raise InputError(
                f"{file} has a sample '{one_line(record.key)}' {what}: choose another folder "
                "with --output, or start over with --restart"
            )
        if record.image != image:
            image, keys, picture_at = record.image, set(), end
        keys.add(record.key)
        done.add(record.key)
        end += len(line)
    if image is not None and keys != {sample.key for sample in pictures[image]}:
        return done - keys, picture_at
    return done, end


def _replace_header(file: Path, run: Run) -> None:
    temporary = file.with_name(f".{file.name}.tmp-{secrets.token_hex(6)}")
    try:
        with file.open("rb") as old, temporary.open("xb") as new:
            old.readline(_MAX_LINE_BYTES)
            new.write(run.to_json().encode() + b"\n")
            shutil.copyfileobj(old, new)
        temporary.replace(file)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
