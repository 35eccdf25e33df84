"""What a scenario is told, and what comes of it: one row for each way of doing one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from benchmarks.harness.errors import ConfigError
from benchmarks.harness.measure import Timing
from rism.runtime.bundle.reader import resolve_bundle

__all__ = [
    "EXAMPLE",
    "NOT_REACHED",
    "Job",
    "Row",
    "absent",
    "bundle_folder",
    "failed",
    "of_size",
    "pending",
    "picture_size",
    "summed_up",
    "timed",
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "street.png"

NOT_REACHED = "not reached"
"""Why a row that is announced has no values yet; who ends its process puts a better reason."""

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One process's share of a scenario.

    Attributes:
        kind: of `benchmarks.scenarios.KINDS`.
        runs, warm_up: timed runs, and untimed ones before.
        parameters: all that the kind has.
    """

    kind: str
    runs: int
    warm_up: int
    parameters: dict[str, Any]

    def get(self, name: str, _type: type[T]) -> T:
        """Return a parameter, whose type was checked when the configuration was read."""
        return cast(T, self.parameters[name])

    def texts(self, name: str) -> list[str]:
        """Return a parameter that is a list of texts."""
        return cast(list[str], self.parameters[name])

    def numbers(self, name: str) -> list[int]:
        """Return a parameter that is a list of numbers."""
        return cast(list[int], self.parameters[name])


@dataclass(frozen=True)
class Row:
    """One way of doing one thing.

    Attributes:
        name: the way.
        group: the thing, where a scenario has several; ratios are within a group.
        unit: "s" or "bytes".
        values: one for each run; empty where it was not measured.
        runs: how many there were where `values` are only the fastest, the median and the slowest.
        host_bytes: memory of the process while it ran, beyond what it held before, at most.
        device_bytes: memory of the GPU at most, weights included.
        notes: what else there is to say, for JSON.
        reason: why there are no values.
        failed: whether that is a fault of this run; False for what this machine has not.
    """

    name: str
    group: str = ""
    unit: str = "s"
    values: tuple[float, ...] = ()
    runs: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    failed: bool = False


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
    return Row(
        name,
        group,
        values=timing.seconds,
        host_bytes=host_bytes,
        device_bytes=device_bytes,
        notes=notes,
    )


def summed_up(
    name: str,
    timing: Mapping[str, Any],
    *,
    group: str = "",
    host_bytes: int | None = None,
    device_bytes: int | None = None,
    **notes: object,
) -> Row:
    """Make a row of what `Timing.to_json_dict` left of the times."""
    values = (timing["min_s"], timing["median_s"], timing["max_s"])
    return Row(
        name,
        group,
        values=values,
        runs=int(timing["runs"]),
        host_bytes=host_bytes,
        device_bytes=device_bytes,
        notes=notes,
    )


def of_size(name: str, nbytes: int, *, group: str = "", **notes: object) -> Row:
    """Make a row of bytes."""
    return Row(name, group, unit="bytes", values=(float(nbytes),), notes=notes)


def failed(name: str, reason: str, *, group: str = "") -> Row:
    """Say why a row that was asked for has no figure; the run fails."""
    return Row(name, group, reason=reason, failed=True)


def absent(name: str, reason: str, *, group: str = "") -> Row:
    """Say what this machine does not have; nothing has failed."""
    return Row(name, group, reason=reason)


def pending(name: str, *, group: str = "") -> Row:
    """Announce a row that is to come, so that it is missed if it does not."""
    return failed(name, NOT_REACHED, group=group)


def bundle_folder(name: str) -> Path:
    """Return a bundle's folder; "mini" is the built-in one, whatever lies in this folder."""
    return resolve_bundle(None if name == "mini" else name)


def picture_size(text: str) -> tuple[int, int]:
    """Read "640x480" as (640, 480).

    Raises:
        ConfigError: it is not two numbers.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) < 2**15 for side in sides):
        raise ConfigError(f"size '{text}' is not two numbers of pixels, expected such as 640x480")
    return int(sides[0]), int(sides[1])
