"""Scenarios as a TOML file has them, checked before anything runs."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import ConfigError
from benchmarks.harness.rows import check_known
from benchmarks.scenarios import KINDS, Value
from rism.runtime.errors import one_line

_TIMES = {"runs": (1, 10_000), "warm_up": (0, 10_000), "time_limit_s": (1, 86_400)}
_LIMITS = ("at_most_s", "at_most_bytes", "ratio_at_most", "over_weights_at_most")
# Each key of a table with a value of its type.
_FILE: dict[str, Any] = dict.fromkeys(_TIMES, 1) | {"scenarios": {}}
_SCENARIO: dict[str, Any] = dict.fromkeys(_TIMES, 1) | {
    "kind": "text",
    "what": "text",
    "baseline": "text",
    "also": ["text"],
    "slow": False,
    "parameters": {},
    "targets": [{}],
}
_TARGET: dict[str, Any] = dict.fromkeys(_LIMITS, 1.0) | {
    "row": "text",
    "group": "text",
    "against": "text",
}


@dataclass(frozen=True)
class Limit:
    """What a row should reach: at least one of its limits is set.

    Attributes:
        row: its name.
        group: the only group that it is for; None for all.
        against: the row that `ratio_at_most` is a ratio to; None for the scenario's baseline.
        at_most_s: of its median.
        at_most_bytes: of its median, where that is of bytes, else of its memory on the host.
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
    targets: tuple[Limit, ...] = ()
    slow: bool = False


def read_config(file: Path) -> list[Scenario]:
    """Read all scenarios of a file.

    Raises:
        ConfigError: the file cannot be read, or has keys or values that are not known.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({one_line(error)}): give --config FILE"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {one_line(error)}") from None
    defaults = _table(given, _FILE, "key", file.name)
    scenarios = defaults.pop("scenarios", {})
    if not scenarios:
        raise ConfigError(f"{file.name} has no [scenarios.NAME], expected at least one")
    return [_scenario(name, each, defaults) for name, each in scenarios.items()]


def chosen(
    scenarios: list[Scenario], names: list[str], changes: Mapping[str, str] | None = None
) -> list[Scenario]:
    """Return those of these names, in the file's order; without names, all but the slow ones.

    Raises:
        ConfigError: there is no such scenario, or a chosen one has no such parameter.
    """
    check_known("scenario", names, [each.name for each in scenarios])
    found = [each for each in scenarios if each.name in names or not (names or each.slow)]
    return [_changed(each, changes) for each in found] if changes else found


def _changed(scenario: Scenario, changes: Mapping[str, str]) -> Scenario:
    own = {name: getattr(scenario, name) for name in _SCENARIO if name != "targets"}
    own |= {"also": list(scenario.also), "parameters": dict(scenario.parameters)}
    for name, text in changes.items():
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:  # a text without its quotes
            value = text
        (own if name in _TIMES else own["parameters"])[name] = value
    changed = _scenario(scenario.name, own, {})
    return Scenario(**{**vars(changed), "targets": scenario.targets})


def _scenario(name: str, given: object, defaults: Mapping[str, Any]) -> Scenario:
    where = f"scenario '{one_line(name, limit=40)}'"
    table = _table(given, _SCENARIO, "key", where)
    for key in ("kind", "baseline"):
        if not table.get(key):
            raise ConfigError(f"{where}: {key} is not given, expected text")
    try:
        kind = KINDS[check_known("kind", [table["kind"]], KINDS)[0]]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for key, (low, high) in _TIMES.items():
        value = table.setdefault(key, defaults.get(key))
        if value is None or not low <= value <= high:
            raise ConfigError(f"{where}: {key} is {value}, expected a number from {low} to {high}")
    own = _table(
        table.pop("parameters", {}), kind.parameters, f"parameter of kind '{table['kind']}'", where
    )
    return Scenario(
        name=name,
        parameters={**kind.parameters, **own},
        targets=tuple(_target(each, where) for each in table.pop("targets", [])),
        also=tuple(table.pop("also", ())),
        **({"what": kind.what} | table),
    )


def _target(given: object, where: str) -> Limit:
    table = _table(given, _TARGET, "key of a target", where)
    if "row" not in table or not any(key in table for key in _LIMITS):
        raise ConfigError(f"{where}: a target needs row and at least one of {', '.join(_LIMITS)}")
    return Limit(**table)


def _table(given: object, known: Mapping[str, Any], what: str, where: str) -> dict[str, Any]:
    """Return a table whose keys are known and whose values have the types of the known ones."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {one_line(given)}, expected a table")
    try:
        check_known(what, list(given), sorted(known))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return {key: _typed(value, known[key], f"{where}: {key}") for key, value in given.items()}


def _typed(value: Any, example: Any, where: str) -> Any:
    """Return a value that has the example's type; a whole number is a float, too."""
    if isinstance(example, float) and type(value) is int:
        return float(value)
    right, expected = type(value) is type(example), type(example).__name__
    if isinstance(example, list):
        expected = f"list of {type(example[0]).__name__}"
        right = right and all(type(each) is type(example[0]) for each in value)
    if not right:
        raise ConfigError(f"{where} is {one_line(value, limit=60)}, expected {expected}")
    return value
