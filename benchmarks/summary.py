"""From rows to figures: medians, ratios, targets; as JSON and as a table."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.config import Limit, Scenario
from benchmarks.harness.rows import Row
from rism.runtime.atomic_write import write_atomically

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
    """Put a scenario's rows beside its baseline."""
    rows = rows + _missing(scenario, rows)
    medians = {(row.group, row.name): statistics.median(row.values) for row in rows if row.values}
    figures = [_figure(scenario, row, medians) for row in rows]
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
        "targets": [
            each for limit in scenario.targets for each in _judged(scenario, limit, figures)
        ],
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
        show = _UNITS[row["unit"]]
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
        "runs": len(row.values),
        "baseline": scenario.baseline,
        "ratio": ratio(scenario.baseline),
        "also": {other: each for other, each in also.items() if each is not None},
        "host_bytes": row.host_bytes,
        "device_bytes": row.device_bytes,
        "notes": row.notes,
    }


def _judged(
    scenario: Scenario, limit: Limit, figures: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Compare every row that a target is for with each of its limits."""
    rows = [row for row in figures if row["row"] == limit.row]
    rows = [row for row in rows if limit.group in (None, row["group"])]
    if not rows:
        rows = [{"row": limit.row, "group": limit.group or "", "reason": "not measured"}]
    against = limit.against or scenario.baseline
    medians = {(row["group"], row["row"]): row.get("median") for row in figures}
    for row in rows:
        for name, (show, end) in _LIMITS.items():
            most = getattr(limit, name)
            if most is None:
                continue
            value = _limited(name, row, medians.get((row["group"], against)))
            end = end.format(against=against)
            shown = "-" if value is None else show(value)
            yield {
                "row": row["row"],
                "group": row["group"],
                "limit": name,
                "at_most": most,
                "against": against if name == "ratio_at_most" else None,
                "value": value,
                "met": None if value is None else value <= most,
                "says": f"{_called(row)} at most {show(most)}{end}, is {shown}",
            }


def _limited(name: str, row: Mapping[str, Any], against: float | None) -> float | None:
    """Return what a limit is compared with; None where it was not measured."""
    if "reason" in row:
        return None
    seconds = row["median"] if row["unit"] == "s" else None
    nbytes = row["median"] if row["unit"] == "bytes" else row["host_bytes"]
    weights, device = row["notes"].get("weights_bytes"), row["device_bytes"]
    found: dict[str, float | None] = {
        "at_most_s": seconds,
        "at_most_bytes": nbytes,
        "ratio_at_most": row["median"] / against if against else None,
        "over_weights_at_most": None if None in (device, weights) else float(device - weights),
    }
    return found[name]


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


def _number(value: float) -> str:
    return f"{value:.4g}"


_UNITS = {"s": _seconds, "bytes": _bytes, "": _number}
# How a limit is written, and what comes after its value.
_LIMITS: dict[str, tuple[Callable[[float], str], str]] = {
    "at_most_s": (_seconds, ""),
    "at_most_bytes": (_bytes, ""),
    "ratio_at_most": (_ratio, " x '{against}'"),
    "over_weights_at_most": (_bytes, " beyond its weights"),
}
