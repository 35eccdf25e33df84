"""Summarises the records of a run in one pass, with a few of them in memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rism.evaluation.metrics.iou import Sums, auroc
from rism.evaluation.run.records import Record

BINS = 20
"""Bars of the histogram of IoU."""
MARKS = ("confidence", "separability")
"""The scores of a record that should separate present from absent objects."""
PICKS = 8
"""Samples shown in each section of the report."""

Pick = tuple[tuple[float, str], Record]
"""A record with its rank."""


@dataclass
class AbsentCounts:
    """Number of samples whose object is absent, and of empty masks among them."""

    count: int = 0
    empty: int = 0

    def to_json_dict(self) -> dict[str, float]:
        """Return the count, and the share of empty masks."""
        return {"n": self.count, "answered empty": self.empty / self.count}


@dataclass
class Summary:
    """Metrics of a run, and the samples that its report shows.

    Attributes:
        overall: over samples whose object is present.
        groups: the same by group.
        maps: of thresholded maps, by their names.
        histogram: samples by IoU, in bins of equal width; the last includes 1.
        lost: number of present samples with an empty mask.
        absent: over samples whose object is absent.
        absent_groups: the same by group.
        best: present samples, highest IoU first.
        worst: present samples, lowest IoU first.
        random: present samples, the same in every run of a dataset.
        wrong: absent samples with a mask, highest confidence first.
    """

    overall: Sums = field(default_factory=Sums)
    groups: dict[str, Sums] = field(default_factory=dict)
    maps: dict[str, Sums] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    lost: int = 0
    absent: AbsentCounts = field(default_factory=AbsentCounts)
    absent_groups: dict[str, AbsentCounts] = field(default_factory=dict)
    best: list[Pick] = field(default_factory=list)
    worst: list[Pick] = field(default_factory=list)
    random: list[Pick] = field(default_factory=list)
    wrong: list[Pick] = field(default_factory=list)
    _marks: dict[str, tuple[array[float], array[float]]] = field(
        default_factory=lambda: {name: (array("d"), array("d")) for name in MARKS}
    )
    _ms: array[float] = field(default_factory=lambda: array("d"))

    @property
    def scored(self) -> int:
        """Number of records."""
        return len(self._ms)

    def add(self, record: Record) -> None:
        """Count one record."""
        sample, group = record.sample, record.sample.group
        self._ms.append(record.ms)
        for name, marks in self._marks.items():
            value = getattr(record, name)
            if value is not None:
                marks[sample.present].append(value)
        if not sample.present:
            counts = [self.absent]
            if group:
                counts.append(self.absent_groups.setdefault(group, AbsentCounts()))
            for each in counts:
                each.count += 1
                each.empty += record.empty
            return
        self.lost += record.empty
        self.overall.add(record.overlap)
        if group:
            self.groups.setdefault(group, Sums()).add(record.overlap)
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
            groups = {
                name: each.to_json_dict() for name, each in sorted(self.absent_groups.items())
            }
            found["absent"] = self.absent.to_json_dict() | {"groups": groups}
            for name, (absent, present) in self._marks.items():
                complete = len(absent) == self.absent.count and len(present) == self.overall.count
                if complete and self.overall.count:
                    found["absent"][f"AUROC of {name}"] = auroc(present, absent)
        if self.scored:
            # Sorted, because a sum in another order may differ in its last digit.
            times = np.sort(np.asarray(self._ms))
            found["ms"] = {
                "mean": float(times.mean()),
                "median": float(np.median(times)),
                "95 %": float(np.percentile(times, 95)),
            }
        return found


def summarise_records(records: Iterable[Record]) -> Summary:
    """Summarise records in any order, with the same result to the last digit."""
    found = Summary()
    for record in records:
        found.add(record)
        # Among equals, such as many with an IoU of 0, chance decides which are shown.
        lot, iou = _digest(record.key), record.overlap.iou
        if record.sample.present:
            _offer(found.best, (iou, lot), record)
            _offer(found.worst, (-iou, lot), record)
            _offer(found.random, (0.0, _digest(f"random {record.key}")), record)
        elif not record.empty:
            sure = record.separability if record.confidence is None else record.confidence
            _offer(found.wrong, (sure, lot), record)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _offer(picks: list[Pick], rank: tuple[float, str], record: Record) -> None:
    """Insert a record by its rank, and keep the highest."""
    picks.append((rank, record))
    picks.sort(key=lambda pick: pick[0], reverse=True)
    del picks[PICKS:]
