"""What the records of a run come to, in one pass and in the memory of a few of them."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rism.evaluation.metrics.iou import Sums, auroc
from rism.evaluation.run.records import Record

__all__ = ["BINS", "PICKS", "Summary", "summarise_records"]

BINS = 20
"""Bars of the histogram of IoU."""
MARKS = ("confidence", "separability")
"""What presence is told by, each judged on its own."""
PICKS = 8
"""Samples shown of each sort."""


@dataclass
class Absent:
    """Samples that ask for what is not there.

    Attributes:
        count: how many.
        empty: those that were answered with an empty mask.
    """

    count: int = 0
    empty: int = 0

    def to_json_dict(self) -> dict[str, float]:
        """Return the count, and the share that was answered empty."""
        return {"n": self.count, "answered empty": self.empty / self.count}


@dataclass
class Summary:
    """Figures of a run, and which samples to look at.

    Attributes:
        overall: over samples whose object is present.
        groups: the same by group.
        maps: of thresholded maps, by their names.
        histogram: samples by IoU, in bins of equal width; the last holds 1 too.
        lost: present samples that were answered with an empty mask.
        absent: over samples whose object is not there.
        absent_groups: the same by group.
        best: highest IoU first.
        worst: lowest IoU first.
        random: any, the same in every run of a dataset.
        wrong: what is not there and got a mask nevertheless, the surest first.
    """

    overall: Sums = field(default_factory=Sums)
    groups: dict[str, Sums] = field(default_factory=dict)
    maps: dict[str, Sums] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    lost: int = 0
    absent: Absent = field(default_factory=Absent)
    absent_groups: dict[str, Absent] = field(default_factory=dict)
    best: list[Record] = field(default_factory=list)
    worst: list[Record] = field(default_factory=list)
    random: list[Record] = field(default_factory=list)
    wrong: list[Record] = field(default_factory=list)
    _marks: dict[str, tuple[array[float], array[float]]] = field(
        default_factory=lambda: {name: (array("d"), array("d")) for name in MARKS}
    )
    _ms: array[float] = field(default_factory=lambda: array("d"))

    @property
    def scored(self) -> int:
        """How many records there are."""
        return len(self._ms)

    def add(self, record: Record) -> None:
        """Count one record."""
        self._ms.append(record.ms)
        for name, marks in self._marks.items():
            value = getattr(record, name)
            if value is not None:
                marks[record.present].append(value)
        if not record.present:
            kinds = [self.absent]
            if record.group:
                kinds.append(self.absent_groups.setdefault(record.group, Absent()))
            for kind in kinds:
                kind.count += 1
                kind.empty += record.empty
            return
        self.lost += record.empty
        self.overall.add(record.overlap)
        if record.group:
            self.groups.setdefault(record.group, Sums()).add(record.overlap)
        for name, one in record.maps.items():
            self.maps.setdefault(name, Sums()).add(one)
        self.histogram[min(int(record.overlap.iou * BINS), BINS - 1)] += 1

    def to_json_dict(self) -> dict[str, Any]:
        """Return the figures; shares 0 to 1, times in milliseconds."""
        found: dict[str, Any] = {
            "metrics": {"full": self.overall.summary()}
            | {name: sums.summary() for name, sums in self.maps.items()},
            "groups": {name: self.groups[name].summary() for name in sorted(self.groups)},
            "histogram": self.histogram,
        }
        if self.overall.count:
            found["present answered empty"] = self.lost / self.overall.count
        if self.absent.count:
            found["absent"] = self.absent.to_json_dict() | {
                "groups": {
                    name: self.absent_groups[name].to_json_dict()
                    for name in sorted(self.absent_groups)
                }
            }
            for name, (absent, present) in self._marks.items():
                whole = len(absent) == self.absent.count and len(present) == self.overall.count
                if whole and self.overall.count:
                    found["absent"][f"AUROC of {name}"] = auroc(present, absent)
        if self.scored:
            # Sorted first: a sum in another order may differ in its last digit.
            times = np.sort(np.asarray(self._ms))
            found["ms"] = {
                "mean": float(times.mean()),
                "median": float(np.median(times)),
                "95 %": float(np.percentile(times, 95)),
            }
        return found


def summarise_records(records: Iterable[Record]) -> Summary:
    """Count records, in any order: what comes out is the same to the last digit."""
    found = Summary()
    best, worst, chance, wrong = _Top(), _Top(), _Top(), _Top()
    for record in records:
        found.add(record)
        lot = hashlib.sha256(record.key.encode()).hexdigest()
        if not record.present and not record.empty:
            sure = record.separability if record.confidence is None else record.confidence
            wrong.offer((sure, lot), record)
        if record.present:
            # Many have an IoU of 0: which of them are shown is left to chance, too.
            best.offer((record.overlap.iou, lot), record)
            worst.offer((-record.overlap.iou, lot), record)
            chance.offer((0.0, hashlib.sha256(f"random {record.key}".encode()).hexdigest()), record)
    found.best, found.worst, found.random = best.records(), worst.records(), chance.records()
    found.wrong = wrong.records()
    return found


class _Top:
    """The few records of the highest rank."""

    def __init__(self) -> None:
        self._held: list[tuple[tuple[float, str], int, Record]] = []
        self._count = 0

    def offer(self, rank: tuple[float, str], record: Record) -> None:
        self._count += 1
        if len(self._held) < PICKS:
            heapq.heappush(self._held, (rank, self._count, record))
        elif rank > self._held[0][0]:
            heapq.heapreplace(self._held, (rank, self._count, record))

    def records(self) -> list[Record]:
        return [record for _, _, record in sorted(self._held, reverse=True, key=lambda x: x[:2])]
