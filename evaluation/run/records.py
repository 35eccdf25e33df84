"""The header of a run and the record of a sample, and their form as lines of JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rism.evaluation.datasets.sample import Sample
from rism.evaluation.metrics.iou import Overlap
from rism.runtime.errors import InputError, one_line

FORMAT = "rism-eval-records"
SCHEMA_VERSION = "1.0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("intersection", "union", "boundary_intersection", "boundary_union")
_KINDS = {"str": str, "int": int, "bool": bool, "tuple[int, int]": list}
_NUMBERS = ("score", "separability", "concentration", "agreement", "ms")


@dataclass(frozen=True)
class Run:
    """Everything that the records of a run depend on.

    Attributes:
        dataset: its name, with the split.
        samples: their number, in all shards.
        samples_digest: of all its samples; see `rism.evaluation.run.runner.digest`.
        gt_merge: how several polygons become one true mask.
        bundle: name of its model.
        bundle_digest: of its files.
        capture: the capture mode.
        provider: of the engines.
        precision: that the transformer computes in.
        options: of `Segmenter.segment`, and others that change the masks.
        maps: the CAM and the RAM are scored too.
        shard: which part of the images, counted from 1, of how many.
        version: of rism.
        started: time in UTC; does not change the result.
        machine: the hardware and packages; likewise.
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
        """Return everything that changes the result, each option under a key of its own."""
        found = asdict(self)
        del found["started"], found["machine"]
        found["shard"] = "/".join(map(str, self.shard))
        for name, value in found.pop("options").items():
            found[f"option {name}"] = value
        return {name.replace("_", " "): value for name, value in found.items()}

    def differences(self, other: Run, *, ignore: Collection[str] = ()) -> list[str]:
        """Return a text for each fact in which another run differs, except some."""
        ours, theirs = self.facts(), other.facts()
        return [
            f"{name} {_shown(theirs.get(name))}, expected {_shown(ours.get(name))}"
            for name in dict.fromkeys((*ours, *theirs))
            if ours.get(name) != theirs.get(name) and name not in ignore
        ]

    def to_json(self) -> str:
        """Return the first line of a file of records, without its end."""
        head = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
        return json.dumps(head | asdict(self), allow_nan=False)


@dataclass(frozen=True)
class Record:
    """The result of one sample.

    Attributes:
        sample: what was scored.
        overlap: of the mask with the true one.
        empty: the mask is empty.
        score, separability, concentration, agreement: of the `Segmentation`.
        confidence: None where the bundle has no rule for it.
        reason: why the mask is empty; None where it is not.
        ms: time of the sample, milliseconds.
        size_hw: of the mask.
        counts: the mask as COCO RLE.
        maps: overlaps of the thresholded maps, by their names.
    """

    sample: Sample
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
    def key(self) -> str:
        """Key of the sample."""
        return self.sample.key

    def to_json(self) -> str:
        """Return its line, without the end."""
        data = asdict(self.sample) | {"empty": self.empty, **asdict(self.overlap)}
        data |= {"iou": self.overlap.iou, "boundary_iou": self.overlap.boundary_iou}
        data |= {name: getattr(self, name) for name in (*_NUMBERS, "confidence", "reason")}
        data["rle"] = {"size": list(self.size_hw), "counts": self.counts}
        if self.maps:
            data["maps"] = {name: asdict(overlap) for name, overlap in self.maps.items()}
        return json.dumps(data, allow_nan=False)


def parse_run(line: bytes, where: str) -> Run:
    """Read a line that `Run.to_json` wrote; `where` names it in messages.

    Raises:
        InputError: it is not a header, or of another version.
    """
    data = _object(line, where)
    if data.get("format") != FORMAT or data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{where} is not the header of records in format {SCHEMA_VERSION}: score again with "
            "--restart, or use the rism that wrote it"
        )
    found = {
        each.name: _get(data, each.name, _KINDS.get(str(each.type), dict), where)
        for each in fields(Run)
    }
    machine = {str(name): str(value) for name, value in found["machine"].items()}
    return Run(**found | {"shard": _pair(data, "shard", where), "machine": machine})


def parse_record(line: bytes, where: str) -> Record:
    """Read a line that `Record.to_json` wrote; `where` names it in messages.

    Raises:
        InputError: it is not a record.
    """
    data = _object(line, where)
    rle = _get(data, "rle", dict, where)
    reason = data.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise InputError(f"{where}: 'reason' is {_shown(reason)}, expected text or null")
    maps = _get(data, "maps", dict, where) if "maps" in data else {}
    sample: dict[str, Any] = {
        name: _get(data, name, str, where) for name in ("key", "image", "expression", "group")
    }
    return Record(
        Sample(**sample, present=_get(data, "present", bool, where)),
        overlap=_overlap(data, where),
        empty=_get(data, "empty", bool, where),
        confidence=None if data.get("confidence") is None else _number(data, "confidence", where),
        reason=reason,
        size_hw=_pair(rle, "size", where),
        counts=_get(rle, "counts", str, where),
        maps={name: _overlap(_get(maps, name, dict, where), where) for name in maps},
        **{name: _number(data, name, where) for name in _NUMBERS},
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


def _pair(data: Mapping[str, Any], key: str, where: str) -> tuple[int, int]:
    value = _get(data, key, list, where)
    if len(value) != 2 or not all(type(number) is int and number > 0 for number in value):
        raise InputError(f"{where}: '{key}' is {_shown(value)}, expected two positive numbers")
    return value[0], value[1]


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value: Any = data.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise InputError(f"{where}: '{key}' is {_shown(value)}, expected a finite number")
    return float(value)


def _shown(value: object) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return "not set" if value is None else one_line(value, limit=60)
