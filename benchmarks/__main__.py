"""`python -m benchmarks [startup] [postprocess] [--json FILE]`: every figure with its baseline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import postprocess, startup
from benchmarks.measure import environment

SCENARIOS = {"startup": startup, "postprocess": postprocess}


def main() -> None:
    """Run the scenarios asked for (all by default) and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"some of: {', '.join(SCENARIOS)}")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    unknown = [name for name in args.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]}, expected some of: {', '.join(SCENARIOS)}")
    results: dict[str, object] = {"environment": environment()}
    for name in args.scenarios or SCENARIOS:
        result = SCENARIOS[name].run()
        results[name] = result
        print(SCENARIOS[name].report(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
