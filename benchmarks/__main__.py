"""`python -m benchmarks [SCENARIO...]`: every figure beside its baseline, measured in one run.

Scenarios are defined in scenarios.toml for any machine and in gpu.toml for one with a GPU. Each is
measured in processes of its own with a time limit. One that fails becomes a row with its reason,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.config import Scenario, chosen, read_config
from benchmarks.harness.errors import ConfigError
from benchmarks.harness.measure import environment
from benchmarks.run import longest_s, run_scenario
from benchmarks.summary import SCHEMA, failures, save, table
from rism.runtime.errors import RismError

QUICK = Path(__file__).parent / "scenarios.toml"


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen scenarios, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(":")[2].strip()
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="by default all but the slow ones")
    add("--config", type=Path, default=QUICK, help="by default scenarios.toml")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a "
        "parameter, or of runs, warm_up and time_limit_s")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--list", action="store_true", help="list the scenarios, run nothing")
    args = parser.parse_args(arguments)
    names = args.scenarios[1:] if args.scenarios[:1] == ["run"] else args.scenarios
    try:
        scenarios = read_config(args.config)
        if args.list:
            print("\n".join(_listed(each) for each in scenarios))
            return 0
        return _run(args, chosen(scenarios, names, dict(_pair(text) for text in args.set)))
    except RismError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text} has no value, expected NAME=VALUE")
    return name, value


def _run(args: argparse.Namespace, scenarios: list[Scenario]) -> int:
    done: dict[str, Any] = {}
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "config": args.config.name,
        "environment": environment(),
        "scenarios": done,
    }
    save(args.json, results)
    for scenario in scenarios:

        def keep(found: dict[str, Any], name: str = scenario.name) -> None:
            done[name] = found
            save(args.json, results)  # an interrupted run leaves what it had

        keep(run_scenario(scenario, keep))
        print(table(scenario.name, done[scenario.name]), end="\n\n", flush=True)
    problems = failures(results)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _listed(scenario: Scenario) -> str:
    slow = "slow, at most" if scenario.slow else "at most"
    return (
        f"{scenario.name:<30} {scenario.kind:<16} {scenario.what}; against '{scenario.baseline}'; "
        f"{slow} {longest_s(scenario)} s"
    )


if __name__ == "__main__":
    # Child processes end with this one, also when it is told to end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
