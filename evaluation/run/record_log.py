"""records.jsonl: a run's header, and a line for each sample that is scored.

Lines are only appended, those of an image at once. An interrupted run leaves at most one image
incomplete, which `resume` removes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from rism.evaluation.datasets.sample import Sample
from rism.evaluation.run.records import Record, Run, parse_record, parse_run
from rism.runtime.errors import InputError, OutputError, one_line

RECORDS = "records.jsonl"
REPORT = "report.html"
RESULT = "result.json"
_MAX_LINE_BYTES = 64 * 2**20


def begin(folder: Path, run: Run) -> None:
    """Write a new file with a header and no records, over an earlier one.

    Raises:
        OutputError: the file cannot be written.
    """
    write_lines(folder / RECORDS, [run.to_json()], "w")


def append(folder: Path, records: Iterable[Record]) -> None:
    """Append the records of an image.

    Raises:
        OutputError: the file cannot be written.
    """
    write_lines(folder / RECORDS, [record.to_json() for record in records], "a")


def write_records(folder: Path, lines: Iterable[str]) -> None:
    """Replace the file of records by one of these lines, at once.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = folder / f".{RECORDS}.tmp-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(temporary, lines, "x")
        temporary.replace(folder / RECORDS)
    except OSError as error:
        raise OutputError(f"cannot write {folder / RECORDS}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def resume(folder: Path, run: Run, images: Mapping[str, Sequence[Sample]]) -> set[str]:
    """Prepare an earlier file of records to be continued, and return the keys of its samples.

    Removes an incomplete line at the end, and the records of the last image where some of them are
    missing: the expressions of an image run together, so interrupted or not the transformer gets
    the same batches. The dataset may have grown since, by a higher limit or by images that were
    missing.

    Without an earlier file a new one is begun. `images` are the samples of every image.

    Raises:
        InputError: the records are damaged, or of another run; the message says what differs.
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
    done, end = _complete_images(file, len(header), images)
    with file.open("r+b") as stream:
        stream.truncate(end)
    if run.differences(earlier):
        header_line = replace(run, started=earlier.started, machine=earlier.machine).to_json()
        records = (line.decode().rstrip("\n") for line, _ in _records(file))
        write_records(folder, chain([header_line], records))
    return done


def _first_line(file: Path, run: Run) -> bytes | None:
    """Read a file's header; None where there is no file, or an incomplete header."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(_MAX_LINE_BYTES)
    except FileNotFoundError:
        return None
    incomplete = not first.endswith(b"\n") and run.to_json().encode().startswith(first[:20])
    return None if incomplete else first


def _complete_images(
    file: Path, end: int, images: Mapping[str, Sequence[Sample]]
) -> tuple[set[str], int]:
    """Return the keys of all complete images' records, and where those end; the header at `end`."""
    samples = {sample.key: sample for group in images.values() for sample in group}
    done: set[str] = set()
    image, keys, image_start = None, set[str](), end
    for line, record in _records(file):
        if record.key in done or samples.get(record.key) != record.sample:
            what = "twice" if record.key in done else "that is not in this dataset"
            raise InputError(
                f"{file} has a sample '{one_line(record.key)}' {what}: choose another folder "
                "with --output, or start over with --restart"
            )
        if record.sample.image != image:
            image, keys, image_start = record.sample.image, set(), end
        keys.add(record.key)
        done.add(record.key)
        end += len(line)
    if image is not None and keys != {sample.key for sample in images[image]}:
        return done - keys, image_start
    return done, end


def read_run(folder: Path) -> Run:
    """Read the header of a folder's records.

    Raises:
        InputError: there are no records, or they are damaged.
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
    """Read a folder's records one by one, without an incomplete line at the end.

    Raises:
        InputError: a line is not a record.
    """
    return (record for _, record in _records(folder / RECORDS))


def _records(file: Path) -> Iterator[tuple[bytes, Record]]:
    """Read records with their lines."""
    with file.open("rb") as stream:
        stream.readline(_MAX_LINE_BYTES)
        for number in count(2):
            line = stream.readline(_MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                if len(line) == _MAX_LINE_BYTES:
                    raise InputError(f"{file} line {number} is too long to be a record")
                return
            yield line, parse_record(line, f"{file} line {number}")


def write_lines(file: Path, lines: Iterable[str], mode: str) -> None:
    """Write lines to the disk, with mode "a" behind those that are there.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with file.open(mode, encoding="utf-8", newline="\n") as stream:
            stream.writelines(line + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from error
