"""Scenarios as a TOML file has them, checked before anything runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import ConfigError
from benchmarks.scenarios import KINDS, Value
from rism.runtime.errors import one_line

__all__ = ["Scenario", "Target", "chosen", "read_config"]

_TIMES = {"runs": (1, 10_000), "warm_up": (0, 10_000), "time_limit_s": (1, 86_400)}
_KEYS = {"kind", "what", "baseline", "also", "slow", "parameters", "targets", *_TIMES}
_LIMITS = ("at_most_s", "at_most_bytes", "ratio_at_most", "over_weights_at_most")


@dataclass(frozen=True)
class Target:
    """What a row should reach: at least one limit.

    Attributes:
        row: its name.
        group: of that group alone; None for every one.
        against: what `ratio_at_most` is a ratio to; None for the scenario's baseline.
        at_most_s: of its median.
        at_most_bytes: of its median, where it is of bytes, else of its memory on the host.
        ratio_at_most: of its median to that of `against`.
        over_weights_at_most: bytes on the device beyond the weights.
    """

    row: str
    group: str | None = None
    against: str | None = None
    at_most_s: float | None = None
    at_most_bytes: float | None = None
    ratio_at_most: float | None = None
    over_weights_at_most: float | None = None


@dataclass(frozen=True)
class Scenario:
    """One thing to measure.

    Attributes:
        name: in the file.
        kind: of `KINDS`.
        what: it shows, in a line.
        baseline: name of the row that ratios are against.
        also: rows that more ratios are against.
        runs, warm_up: timed runs, and untimed ones before.
        time_limit_s: of each of its processes.
        parameters: all of the kind's.
        targets: what rows should reach.
        slow: measured only where it is named.
    """

    name: str
    kind: str
    what: str
    baseline: str
    also: tuple[str, ...]
    runs: int
    warm_up: int
    time_limit_s: int
    parameters: Mapping[str, Value]
    targets: tuple[Target, ...] = ()
    slow: bool = False


def read_config(file: Path) -> list[Scenario]:
    """Read all scenarios of a file.

    Raises:
        ConfigError: the file cannot be read, or says what is not known.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({one_line(error)}): give --config FILE"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {one_line(error)}") from None
    _known("key", given, {"scenarios", *_TIMES}, file.name)
    scenarios = given.get("scenarios")
    if not isinstance(scenarios, dict) or not scenarios:
        raise ConfigError(f"{file.name} has no [scenarios.NAME], expected at least one")
    defaults = {name: given[name] for name in _TIMES if name in given}
    return [_scenario(name, each, defaults) for name, each in scenarios.items()]


def chosen(scenarios: list[Scenario], names: list[str]) -> list[Scenario]:
    """Return those of these names, in the file's order; where there are none, all but slow ones.

    Raises:
        ConfigError: there is no such scenario.
    """
    known = [each.name for each in scenarios]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"scenario '{one_line(name, limit=40)}' is not known, expected some of "
                f"{', '.join(known)}"
            )
    return [each for each in scenarios if each.name in names or not (names or each.slow)]


def _scenario(name: str, given: object, defaults: Mapping[str, Any]) -> Scenario:
    where = f"scenario '{one_line(name, limit=40)}'"
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is not a table, expected [scenarios.{one_line(name)}]")
    _known("key", given, _KEYS, where)
    kind = given.get("kind")
    if kind not in KINDS:
        raise ConfigError(
            f"{where}: kind '{one_line(kind)}' is not known, expected one of {', '.join(KINDS)}"
        )
    times = {}
    for key, (low, high) in _TIMES.items():
        value = given.get(key, defaults.get(key))
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(
                f"{where}: {key} is {one_line(value)}, expected a number from {low} to {high}"
            )
        times[key] = value
    return Scenario(
        name=name,
        kind=kind,
        what=_text(given.get("what", KINDS[kind].what), f"{where}: what"),
        baseline=_text(given.get("baseline"), f"{where}: baseline"),
        also=tuple(_typed(given.get("also", []), ["a row"], f"{where}: also")),
        parameters=_parameters(kind, given.get("parameters", {}), where),
        targets=_targets(given.get("targets", []), where),
        slow=_typed(given.get("slow", False), False, f"{where}: slow"),
        **times,
    )


def _parameters(kind: str, given: object, where: str) -> dict[str, Value]:
    known = KINDS[kind].parameters
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: parameters are not a table")
    _known(f"parameter of kind '{kind}'", given, set(known), where)
    return {
        name: _typed(given.get(name, default), default, f"{where}: parameter {name}")
        for name, default in known.items()
    }


def _targets(given: object, where: str) -> tuple[Target, ...]:
    if not isinstance(given, list):
        raise ConfigError(f"{where}: targets are not a list, expected [[scenarios.NAME.targets]]")
    found = []
    for each in given:
        if not isinstance(each, dict):
            raise ConfigError(f"{where}: a target is not a table")
        _known("key of a target", each, {"row", "group", "against", *_LIMITS}, where)
        texts: dict[str, Any] = {
            key: _text(each[key], f"{where}: {key} of a target")
            for key in ("row", "group", "against")
            if key in each
        }
        limits = {key: _typed(each[key], 1.0, f"{where}: {key}") for key in _LIMITS if key in each}
        if "row" not in texts or not limits:
            raise ConfigError(
                f"{where}: a target says row and at least one of {', '.join(_LIMITS)}"
            )
        found.append(Target(**texts, **limits))
    return tuple(found)


def _typed(value: Any, default: Any, where: str) -> Any:
    """Return a value that has its default's type; a whole number is a float, too."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    right = type(value) is type(default)
    if right and isinstance(default, list):
        right = all(type(each) is type(default[0]) for each in value)
    if not right:
        expected = type(default).__name__
        if isinstance(default, list):
            expected = f"list of {type(default[0]).__name__}"
        raise ConfigError(f"{where} is {one_line(value, limit=60)}, expected {expected}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} is {one_line(value)}, expected text")
    return value


def _known(what: str, given: Mapping[str, object], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: {what} '{one_line(key, limit=40)}' is not known, expected some of "
                f"{', '.join(sorted(known)) or 'none'}"
            )
