"""Python processes that a scenario starts: what they print, how long they take, their memory."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.harness.errors import ScenarioError
from benchmarks.harness.measure import Timing, by_turns
from rism.runtime.errors import one_line

ROOT = Path(__file__).parents[2]
# The kernel tells the parent of a process that has ended the most memory that it held. A small
# parent of its own: what a large one holds would count.
_WATCH = (
    "import resource, subprocess, sys; "
    "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)"
)


def environment_with_root() -> dict[str, str]:
    """Return this process's environment, with the repository in front of PYTHONPATH."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths}


def run_python(command: tuple[str, ...], *, check: bool = True) -> str:
    """Run a Python process to its end, and return its output.

    Raises:
        ScenarioError: it failed, and `check` is set.
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment_with_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it wrote no message"]
        raise ScenarioError(
            f"python {one_line(' '.join(command), limit=60)} ended with {done.returncode}: "
            f"{one_line(last[0])}"
        )
    return done.stdout


def peak_of(command: tuple[str, ...], *, check: bool = True) -> int:
    """Run a Python process, and return its peak resident memory in bytes."""
    output = run_python(("-c", _WATCH, sys.executable, *command), check=check)
    return int(output.split()[-1])


def time_and_peak(
    commands: Mapping[str, Callable[[], tuple[str, ...]]], *, runs: int
) -> dict[str, tuple[Timing, int]]:
    """Run Python processes by turns, their start included.

    Returns:
        Times, and the highest peak memory in bytes.
    """
    peaks = dict.fromkeys(commands, 0)

    def run(name: str) -> None:
        peaks[name] = max(peaks[name], peak_of(commands[name]()))

    ways = {name: partial(run, name) for name in commands}
    timings = by_turns(ways, runs=runs, warm_up=0, settle=False)
    return {name: (timings[name], peaks[name]) for name in commands}
