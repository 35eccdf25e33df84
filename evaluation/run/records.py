"""What is kept of a run and of each of its samples, and how it is written as lines of JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rism.evaluation.datasets.sample import Sample
from rism.evaluation.metrics.iou import Overlap
from rism.runtime.errors import InputError, one_line

__all__ = ["Record", "Run", "parse_record", "parse_run"]

FORMAT = "rism-eval-records"
SCHEMA_VERSION = "1.0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("intersection", "union", "boundary_intersection", "boundary_union")
_NUMBERS = ("score", "separability", "concentration", "agreement", "ms")


@dataclass(frozen=True)
class Run:
    """Everything that decides what the records of a run say.

    Attributes:
        dataset: its name, with the split.
        samples: how many it has, in all shards.
        samples_digest: of all its samples; see `rism.evaluation.run.runner.digest`.
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

    def differences(self, other: Run, *, ignore: Collection[str] = ()) -> list[str]:
        """Say how another run differs, fact by fact, but for some."""
        ours, theirs = self.facts(), other.facts()
        return [
            f"{name} {_shown(theirs.get(name))}, expected {_shown(ours.get(name))}"
            for name in dict.fromkeys((*ours, *theirs))
            if ours.get(name) != theirs.get(name) and name not in ignore
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
        score: of the result, like the six that follow.
        separability: of the result.
        concentration: of the result.
        agreement: of the result.
        confidence: of the result; None where the bundle has no rule for it.
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
    concentration: float
    agreement: float
    confidence: float | None
    reason: str | None
    ms: float
    size_hw: tuple[int, int]
    counts: str
    maps: Mapping[str, Overlap] = field(default_factory=dict)

    @property
    def sample(self) -> Sample:
        """What it is of."""
        return Sample(self.key, self.image, self.expression, self.group, self.present)

    def to_json(self) -> str:
        """Return its line, without the end."""
        data = {name: getattr(self, name) for name in ("key", "image", "expression", "group")}
        data |= {"present": self.present, "empty": self.empty, **asdict(self.overlap)}
        data |= {"iou": self.overlap.iou, "boundary_iou": self.overlap.boundary_iou}
        data |= {name: getattr(self, name) for name in (*_NUMBERS, "confidence", "reason")}
        data["rle"] = {"size": list(self.size_hw), "counts": self.counts}
        if self.maps:
            data["maps"] = {name: asdict(overlap) for name, overlap in self.maps.items()}
        return _line(data)


def parse_run(line: bytes, where: str) -> Run:
    """Read a header.

    Args:
        line: what `Run.to_json` wrote.
        where: what to call it.

    Raises:
        InputError: it is none, or of another version.
    """
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


def parse_record(line: bytes, where: str) -> Record:
    """Read a record.

    Args:
        line: what `Record.to_json` wrote.
        where: what to call it.

    Raises:
        InputError: it is none.
    """
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
        confidence=None if data.get("confidence") is None else _number(data, "confidence", where),
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


def _shown(value: object) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return "not set" if value is None else one_line(value, limit=60)
