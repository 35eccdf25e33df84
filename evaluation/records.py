"""What is kept of a run while it goes on: records.jsonl, a header and a line for each sample.

Lines are only ever added, the lines of a picture at once, so whatever ends a run leaves whole
pictures and at most one broken off, which `resume` removes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rism.evaluation.metrics import Overlap
from rism.runtime.errors import InputError, OutputError, one_line

__all__ = [
    "RECORDS",
    "REPORT",
    "RESULT",
    "Record",
    "Run",
    "append",
    "begin",
    "read_records",
    "read_run",
    "resume",
]

RECORDS = "records.jsonl"
REPORT = "report.html"
RESULT = "result.json"
FORMAT = "rism-eval-records"
SCHEMA_VERSION = "1.0"
_MAX_LINE_BYTES = 64 * 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("intersection", "union", "boundary_intersection", "boundary_union")
_NUMBERS = ("score", "separability", "confidence", "ms")


@dataclass(frozen=True)
class Run:
    """Everything that decides what the records of a run say.

    Attributes:
        dataset: its name, with the split.
        samples: how many it has, in all shards.
        samples_digest: of all its samples; see `rism.evaluation.runner.digest`.
        gt_merge: how several polygons become one true mask.
        bundle: name of its model.
        bundle_digest: of its files.
        capture: which transformer graph.
        provider: what runs the graphs.
        precision: what the transformer computes in.
        options: what the segmenter is asked with, and everything else that a user chose for it.
        maps: the maps that the method begins with are scored too.
        shard: which part of the pictures, of how many; the first is 1.
        version: of rism.
        started: when, in UTC; like the next, no reason for another result.
        machine: on what, and with which packages.
    """

    dataset: str
    samples: int
    samples_digest: str
    gt_merge: str
    bundle: str
    bundle_digest: str
    capture: str
    provider: str
    precision: str
    options: Mapping[str, Any] = field(default_factory=dict)
    maps: bool = False
    shard: tuple[int, int] = (1, 1)
    version: str = ""
    started: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what two runs are compared by, each option under a key of its own."""
        found = asdict(self)
        del found["started"], found["machine"]
        found["shard"] = "/".join(map(str, self.shard))
        for name, value in found.pop("options").items():
            found[f"option {name}"] = value
        return {name.replace("_", " "): value for name, value in found.items()}

    def differences(self, other: Run, *, shard: bool = True) -> list[str]:
        """Say how another run differs, fact by fact; with `shard=False` its shard may."""
        ours, theirs = self.facts(), other.facts()
        return [
            f"{name} {_shown(theirs.get(name))}, expected {_shown(ours.get(name))}"
            for name in dict.fromkeys((*ours, *theirs))
            if ours.get(name) != theirs.get(name) and (shard or name != "shard")
        ]

    def to_json(self) -> str:
        """Return the first line of a file of records, without its end."""
        return _line({"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)})


@dataclass(frozen=True)
class Record:
    """What became of one sample.

    Attributes:
        key: of the sample, like the four that follow.
        image: of the sample.
        expression: of the sample.
        group: of the sample.
        present: of the sample.
        overlap: of the mask that was found with the true one.
        empty: nothing was found.
        score: of the result, like the four that follow.
        separability: of the result.
        confidence: of the result.
        reason: why the mask is empty; None where it is not.
        ms: what the result took, milliseconds.
        size_hw: rows and columns of the mask.
        counts: the mask as COCO RLE.
        maps: overlaps of thresholded maps, by their names.
    """

    key: str
    image: str
    expression: str
    group: str
    present: bool
    overlap: Overlap
    empty: bool
    score: float
    separability: float
    confidence: float
    reason: str | None
    ms: float
    size_hw: tuple[int, int]
    counts: str
    maps: Mapping[str, Overlap] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return its line, without the end."""
        data = {name: getattr(self, name) for name in ("key", "image", "expression", "group")}
        data |= {"present": self.present, "empty": self.empty, **asdict(self.overlap)}
        data |= {"iou": self.overlap.iou, "boundary_iou": self.overlap.boundary_iou}
        data |= {name: getattr(self, name) for name in (*_NUMBERS, "reason")}
        data["rle"] = {"size": list(self.size_hw), "counts": self.counts}
        if self.maps:
            data["maps"] = {name: asdict(overlap) for name, overlap in self.maps.items()}
        return _line(data)


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
        if not first.endswith(b"\n") and run.to_json().startswith(_text(first)[:20]):
            first = b""  # it ended before its first line did
    if not first:
        begin(folder, run)
        return set()
    earlier = _parse_run(first, file)
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
            return _parse_run(stream.readline(_MAX_LINE_BYTES), file)
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
            yield line, _parse_record(line, f"{file} line {number}")


def _parse_run(line: bytes, file: Path) -> Run:
    where = f"{file} line 1"
    data = _object(line, where)
    if data.get("format") != FORMAT or data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{where} is not the header of records in format {SCHEMA_VERSION}: score again with "
            "--restart, or use the rism that wrote it"
        )
    shard = _get(data, "shard", list, where)
    options = _get(data, "options", dict, where)
    if len(shard) != 2 or not all(type(number) is int and number > 0 for number in shard):
        raise InputError(f"{where}: 'shard' is {_shown(shard)}, expected two numbers")
    machine = _get(data, "machine", dict, where)
    texts = (
        "dataset", "samples_digest", "gt_merge", "bundle", "bundle_digest", "capture",
        "provider", "precision", "version", "started",
    )  # fmt: skip
    return Run(
        samples=_get(data, "samples", int, where),
        options=options,
        machine={str(name): str(value) for name, value in machine.items()},
        maps=_get(data, "maps", bool, where),
        shard=(shard[0], shard[1]),
        **{name: _get(data, name, str, where) for name in texts},
    )


def _parse_record(line: bytes, where: str) -> Record:
    data = _object(line, where)
    rle = _get(data, "rle", dict, where)
    size = _get(rle, "size", list, where)
    if len(size) != 2 or not all(type(number) is int and number > 0 for number in size):
        raise InputError(f"{where}: 'size' is {_shown(size)}, expected rows and columns")
    reason = data.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise InputError(f"{where}: 'reason' is {_shown(reason)}, expected text or null")
    maps = _get(data, "maps", dict, where) if "maps" in data else {}
    texts: dict[str, Any] = {
        name: _get(data, name, str, where) for name in ("key", "image", "expression", "group")
    }
    numbers: dict[str, Any] = {name: _number(data, name, where) for name in _NUMBERS}
    return Record(
        **texts,
        **numbers,
        present=_get(data, "present", bool, where),
        overlap=_overlap(data, where),
        empty=_get(data, "empty", bool, where),
        reason=reason,
        size_hw=(size[0], size[1]),
        counts=_get(rle, "counts", str, where),
        maps={name: _overlap(_get(maps, name, dict, where), where) for name in maps},
    )


def _overlap(data: Mapping[str, Any], where: str) -> Overlap:
    found = Overlap(**{name: _get(data, name, int, where) for name in _COUNTS})
    if not (
        0 <= found.intersection <= found.union
        and 0 <= found.boundary_intersection <= found.boundary_union
    ):
        raise InputError(f"{where} has an intersection that is larger than its union")
    return found


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        data: object = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a JSON object: score again with --restart")
    return data


def _get(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if type(value) is not kind:
        raise InputError(
            f"{where}: '{one_line(key)}' is {_shown(value)}, expected {kind.__name__}: score "
            "again with --restart"
        )
    return value


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value: Any = data.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise InputError(f"{where}: '{key}' is {_shown(value)}, expected a finite number")
    return float(value)


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, allow_nan=False)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _shown(value: object) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return "not set" if value is None else one_line(value, limit=60)


def _write(file: Path, text: str, mode: str) -> None:
    try:
        with file.open(mode, encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from error
