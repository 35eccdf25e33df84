"""`python -m benchmarks [run] [SCENARIO...]`: every figure beside its baseline, of the same run.

Scenarios stand in a file: scenarios.toml for any machine, gpu.toml for one with a GPU. Each is
measured in processes of its own, with a time limit; what fails is a row with its reason, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.config import Scenario, chosen, read_config
from benchmarks.harness.measure import environment
from benchmarks.results import SCHEMA, failures, save, table
from benchmarks.run import longest_s, run_scenario
from rism.runtime.errors import RismError

QUICK = Path(__file__).parent / "scenarios.toml"


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios asked for, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(":")[2].strip()
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="names; none: all but slow ones"
    )
    parser.add_argument("--config", type=Path, default=QUICK, help="by default scenarios.toml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them there (matplotlib)")
    parser.add_argument("--list", action="store_true", help="say what there is, run nothing")
    args = parser.parse_args(arguments)
    names = args.scenarios[1:] if args.scenarios[:1] == ["run"] else args.scenarios
    try:
        scenarios = read_config(args.config)
        if args.list:
            print("\n".join(_listed(each) for each in scenarios))
            return 0
        return _run(args, chosen(scenarios, names))
    except RismError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
            save(args.json, results)  # a run that is cut short leaves what it had

        keep(run_scenario(scenario, keep))
        print(table(scenario.name, done[scenario.name]), end="\n\n", flush=True)
    if args.plots is not None:
        from benchmarks.harness.plots import draw

        for file in draw(results, args.plots):
            print(f"drew {file}")
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
    # What it started ends with it, also where it is told to end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
