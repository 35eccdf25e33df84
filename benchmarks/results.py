"""From rows to figures: medians, ratios, targets; as JSON and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.config import Scenario, Target
from benchmarks.harness.rows import Row
from rism.runtime.atomic_write import write_atomically

__all__ = ["SCHEMA", "failures", "save", "summary", "table"]

SCHEMA = 1
"""Version of the files that `--json` writes."""


def save(file: Path | None, results: Mapping[str, Any]) -> None:
    """Write what is known so far as JSON, whole or not at all; None is no file.

    Raises:
        OutputError: it cannot be written.
    """
    if file is not None:
        write_atomically(file, (json.dumps(results, indent=1) + "\n").encode())


def summary(
    scenario: Scenario,
    rows: list[Row],
    versions: Mapping[str, str],
    *,
    seconds: float,
    gpu: object = None,
) -> dict[str, Any]:
    """Put a scenario's rows beside its baseline.

    Args:
        scenario: what was asked for.
        rows: what came of it.
        versions: of what took part.
        seconds: that all of it took.
        gpu: what is known of it, if there was one.
    """
    rows = rows + _missing(scenario, rows)
    medians = {(row.group, row.name): statistics.median(row.values) for row in rows if row.values}
    figures = [_figure(scenario, row, medians) for row in rows]
    targets = [
        each for target in scenario.targets for each in _judged(scenario, target, figures, medians)
    ]
    found: dict[str, Any] = {
        "kind": scenario.kind,
        "what": scenario.what,
        "baseline": scenario.baseline,
        "runs": scenario.runs,
        "warm_up": scenario.warm_up,
        "parameters": dict(scenario.parameters),
        "seconds": round(seconds, 1),
        "versions": dict(versions),
        "rows": figures,
        "targets": targets,
    }
    return found if gpu is None else found | {"gpu": gpu}


def failures(results: Mapping[str, Any]) -> list[str]:
    """Say which rows of a run have no figure that should have one."""
    return [
        f"{name}: {_called(row)}: {row['reason']}"
        for name, scenario in results["scenarios"].items()
        for row in scenario["rows"]
        if row.get("failed")
    ]


def table(name: str, found: Mapping[str, Any]) -> str:
    """A short table of a scenario."""
    lines = [
        f"{name}: {found['what']}; {found['runs']} runs after {found['warm_up']}, ratios to "
        f"'{found['baseline']}'"
    ]
    wide = max(len(_called(row)) for row in found["rows"])
    for row in found["rows"]:
        start = f"  {_called(row):<{wide}}"
        if row.get("reason"):
            lines.append(f"{start}  {'FAILED' if row['failed'] else 'not here'}: {row['reason']}")
            continue
        show = _seconds if row["unit"] == "s" else _bytes
        text = f"{start}  {show(row['median']):>10}"
        if row["runs"] > 1:
            text += f"  ({show(row['min'])} to {show(row['max'])})"
        text += f"  x {_ratio(row['ratio'])}" if row["ratio"] is not None else ""
        for label in ("host", "device"):
            if row[f"{label}_bytes"] is not None:
                text += f"  {label} {_bytes(row[f'{label}_bytes'])}"
        text += "".join(f"  x {_ratio(each)} {other}" for other, each in row["also"].items())
        lines.append(text)
    for target in found["targets"]:
        reached = "not measured" if target["met"] is None else "met" if target["met"] else "missed"
        lines.append(f"  target: {target['says']}: {reached}")
    return "\n".join(lines)


def _missing(scenario: Scenario, rows: list[Row]) -> list[Row]:
    """Say of each group that has no baseline that it has none: its figures mean little."""
    told = [row for row in rows if row.values]
    without = {row.group for row in told} - {
        row.group for row in rows if row.name == scenario.baseline
    }
    names = ", ".join(dict.fromkeys(row.name for row in told))
    return [
        Row(
            scenario.baseline,
            group,
            reason=f"no row of this name was measured, there are: {names}",
            failed=True,
        )
        for group in sorted(without)
    ]


def _figure(
    scenario: Scenario, row: Row, medians: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    start: dict[str, Any] = {"row": row.name, "group": row.group}
    if not row.values:
        return start | {"reason": row.reason, "failed": row.failed}
    median = medians[row.group, row.name]

    def ratio(other: str) -> float | None:
        against = medians.get((row.group, other))
        return median / against if against else None

    also = {other: ratio(other) for other in scenario.also if other != row.name}
    return start | {
        "unit": row.unit,
        "median": median,
        "min": min(row.values),
        "max": max(row.values),
        "runs": row.runs or len(row.values),
        "baseline": scenario.baseline,
        "ratio": ratio(scenario.baseline),
        "also": {other: each for other, each in also.items() if each is not None},
        "host_bytes": row.host_bytes,
        "device_bytes": row.device_bytes,
        "notes": row.notes,
    }


def _judged(
    scenario: Scenario,
    target: Target,
    figures: list[dict[str, Any]],
    medians: Mapping[tuple[str, str], float],
) -> list[dict[str, Any]]:
    """Compare every row that a target is of with each of its limits."""
    found = []
    limits = {name: value for name, value in asdict(target).items() if name.count("at_most")}
    wanted = [
        row for row in figures if row["row"] == target.row and target.group in (None, row["group"])
    ]
    if not wanted:
        wanted = [{"row": target.row, "group": target.group or "", "reason": "not measured"}]
    for row in wanted:
        for name, limit in limits.items():
            if limit is None:
                continue
            against = target.against or scenario.baseline
            value = _limited(name, row, medians.get((row["group"], against)))
            says, shown = _says(name, limit, value, against)
            found.append(
                {
                    "row": row["row"],
                    "group": row["group"],
                    "limit": name,
                    "at_most": limit,
                    "against": against if name == "ratio_at_most" else None,
                    "value": value,
                    "met": None if value is None else value <= limit,
                    "says": f"{_called(row)} {says}, is {shown}",
                }
            )
    return found


def _limited(name: str, row: Mapping[str, Any], against: float | None) -> float | None:
    """What a limit is of; None where it was not measured."""
    if "reason" in row:
        return None
    median: float = row["median"]
    if name == "ratio_at_most":
        return median / against if against else None
    if name == "at_most_s":
        return median if row["unit"] == "s" else None
    if name == "at_most_bytes":
        found: float | None = median if row["unit"] == "bytes" else row["host_bytes"]
        return found
    weights = row["notes"].get("weights_bytes")
    if row["device_bytes"] is None or weights is None:
        return None
    return float(row["device_bytes"] - weights)


def _says(name: str, limit: float, value: float | None, against: str) -> tuple[str, str]:
    show = {"at_most_s": _seconds, "ratio_at_most": _ratio}.get(name, _bytes)
    end = {
        "ratio_at_most": f" x '{against}'",
        "over_weights_at_most": " beyond its weights",
    }.get(name, "")
    return f"at most {show(limit)}{end}", "-" if value is None else show(value)


def _called(row: Mapping[str, Any]) -> str:
    return f"{row['group']} {row['row']}".strip()


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"1/{1 / value:.0f}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
