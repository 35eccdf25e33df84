"""What a scenario is asked for, and what it finds: one row for each way of doing one thing."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import ConfigError
from benchmarks.harness.measure import Timing, by_turns, with_host_peak
from rism.runtime.bundle.reader import resolve_bundle
from rism.runtime.errors import one_line

EXAMPLE = Path(__file__).parents[2] / "examples" / "street.png"

NOT_REACHED = "not reached"
"""Reason of a row that is announced and has no values yet."""


@dataclass(frozen=True)
class Task:
    """One process's share of a scenario."""

    kind: str
    runs: int
    warm_up: int
    parameters: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]


@dataclass(frozen=True)
class Row:
    """One way of doing one thing.

    Attributes:
        name: the way.
        group: the thing, where a scenario has several; ratios are within a group.
        unit: "s", "bytes", or "" for a plain number.
        values: one for each run; empty where it was not measured.
        host_bytes: peak memory of the process while it ran, beyond what it held before.
        device_bytes: peak memory of the GPU, weights included.
        notes: further facts, for the JSON file.
        reason: why there are no values.
        failed: whether that is an error of this run; False for what this machine does not have.
    """

    name: str
    group: str = ""
    unit: str = "s"
    values: tuple[float, ...] = ()
    host_bytes: int | None = None
    device_bytes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    failed: bool = False


def read_row(given: Mapping[str, Any]) -> Row:
    """Read a row that another process wrote as JSON."""
    return Row(**{**given, "values": tuple(given["values"])})


def timed(
    name: str,
    timing: Timing,
    *,
    group: str = "",
    host_bytes: int | None = None,
    device_bytes: int | None = None,
    **notes: object,
) -> Row:
    """Make a row of seconds."""
    return Row(name, group, "s", timing.seconds, host_bytes, device_bytes, notes)


def time_ways(
    task: Task,
    ways: Mapping[str, Callable[[], object]],
    *,
    group: str = "",
    notes: Mapping[str, Mapping[str, object]] | None = None,
    **common: object,
) -> list[Row]:
    """Time several ways by turns, then run each once more for its memory."""
    timings = by_turns(ways, runs=task.runs, warm_up=task.warm_up)
    rows = []
    for name, way in ways.items():
        _, peak = with_host_peak(way)
        own = {**common, **(notes or {}).get(name, {})}
        rows.append(Row(name, group, "s", timings[name].seconds, peak, notes=own))
    return rows


def of_value(
    name: str, value: float, *, unit: str = "bytes", group: str = "", **notes: object
) -> Row:
    """Make a row of one number: of bytes, or of another unit that a `Row` may have."""
    return Row(name, group, unit=unit, values=(float(value),), notes=notes)


def failed(name: str, reason: str, *, group: str = "") -> Row:
    """Say why a row that was asked for has no figure; the run fails."""
    return Row(name, group, reason=reason, failed=True)


def absent(name: str, reason: str, *, group: str = "") -> Row:
    """Say what this machine does not have; nothing has failed."""
    return Row(name, group, reason=reason)


def pending(name: str, *, group: str = "") -> Row:
    """Announce a row, so that it is reported as not reached if it never comes."""
    return failed(name, NOT_REACHED, group=group)


def bundle_folder(name: str) -> Path:
    """Return a bundle's folder; "mini" is always the built-in one."""
    return resolve_bundle(None if name == "mini" else name)


def image_size(text: str) -> tuple[int, int]:
    """Read "640x480" as (640, 480).

    Raises:
        ConfigError: it is not two numbers.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) < 2**15 for side in sides):
        raise ConfigError(f"size '{text}' is not two numbers of pixels, expected such as 640x480")
    return int(sides[0]), int(sides[1])


def check_known(what: str, names: list[str], known: Collection[str]) -> list[str]:
    """Return names that are all known.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{what} '{one_line(name, limit=40)}' is not known, expected some of "
                f"{', '.join(known)}"
            )
    return names
