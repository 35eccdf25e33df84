"""Running scenarios, each in processes of its own with a time limit.

Rows are read while they are measured, so those of a process that is ended are kept.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.child import Line, measure, read_lines
from benchmarks.config import Scenario
from benchmarks.harness.child_process import ROOT, environment_with_root
from benchmarks.harness.measure import versions
from benchmarks.harness.rows import NOT_REACHED, Row, Task, failed, read_row
from benchmarks.scenarios import KINDS
from benchmarks.summary import summary
from rism.runtime.errors import one_line

_LOOK_S = 1.0
Watch = Callable[[dict[str, Any]], None]
"""Called with what is known of a scenario, as `run_scenario` returns it, whenever there is more."""
_Seen = Callable[[list[Line]], None]


def run_scenario(scenario: Scenario, watch: Watch = lambda _: None) -> dict[str, Any]:
    """Measure a scenario in processes of its own.

    Of a process that fails, or takes too long, the rows that it had measured are kept; the others
    get its reason, and the remaining processes run.
    """
    return _run(scenario, watch, lambda task, seen: in_child(task, scenario.time_limit_s, seen))


def run_here(scenario: Scenario) -> dict[str, Any]:
    """Measure a scenario in this process, without a limit."""
    return _run(scenario, lambda _: None, lambda task, _: [*measure(task)])


def longest_s(scenario: Scenario) -> int:
    """Seconds that all processes of a scenario may take together."""
    return sum(scenario.time_limit_s for _ in _tasks(scenario))


def _run(
    scenario: Scenario, watch: Watch, ask: Callable[[Task, _Seen], list[Line]]
) -> dict[str, Any]:
    start = time.perf_counter()
    parts: dict[str, list[Line]] = {}

    def known() -> dict[str, Any]:
        return _summary(scenario, parts, seconds=time.perf_counter() - start)

    for part, task in _tasks(scenario):

        def seen(lines: list[Line], part: str = part) -> None:
            parts[part] = lines
            watch(known())

        parts[part] = ask(task, seen)
    return known()


def _summary(
    scenario: Scenario, parts: Mapping[str, list[Line]], *, seconds: float
) -> dict[str, Any]:
    """Put together what the processes of a scenario have written so far."""
    rows: list[Row] = []
    found = versions(KINDS[scenario.kind].packages)
    gpu: object = None
    for part, lines in parts.items():
        own: dict[tuple[str, str], Row] = {}
        reason: str | None = None
        for line in lines:
            if "row" in line:
                row = read_row(line["row"])
                own[row.group, row.name] = row  # what was announced is replaced by its figure
            reason = line.get("reason", reason)
            found |= line.get("versions", {})
            gpu = line.get("gpu", gpu)
        if reason is not None:
            missing = {key: row for key, row in own.items() if row.reason == NOT_REACHED}
            own |= {key: replace(row, reason=reason) for key, row in missing.items()}
            if not missing:
                own["", part] = failed(part or scenario.name, reason)
        rows += own.values()
    return summary(scenario, rows, found, seconds=seconds, gpu=gpu)


def _tasks(scenario: Scenario) -> Iterator[tuple[str, Task]]:
    """Give each process's share, and its name."""
    alone = KINDS[scenario.kind].alone
    shares: list[tuple[str, dict[str, Any]]] = [("", {})]
    if alone is not None:
        values = scenario.parameters[alone]
        assert isinstance(values, list), "a kind is split along a list"
        shares = [(str(value), {alone: [value]}) for value in values]
    for part, own in shares:
        parameters = {**scenario.parameters, **own}
        yield part, Task(scenario.kind, scenario.runs, scenario.warm_up, parameters)


def in_child(task: Task, limit_s: int, seen: _Seen = lambda _: None) -> list[Line]:
    """Run a task in a process of its own, at most so long, and return the lines that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "rows.jsonl", Path(folder) / "errors.txt"
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.child", json.dumps(asdict(task)), str(file)],
                cwd=ROOT,
                env=environment_with_root(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that the processes that it starts end with it
            )
        try:
            _wait(process, file, limit_s, seen)
        finally:
            code = process.poll()
            if code is None:  # it took too long, or this process is to end
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines, output = read_lines(file), errors.read_text(errors="replace").strip()
        if code is None:
            return [*lines, {"reason": f"was not done after {limit_s} s"}]
        if code != 0:
            last = output.splitlines()[-1:] or ["it wrote no message"]
            return [*lines, {"reason": f"exit code {code}: {one_line(last[0])}"}]
        if output and any("reason" in line for line in lines):
            print(output, file=sys.stderr, flush=True)
        return lines


def _wait(process: subprocess.Popen[bytes], file: Path, limit_s: int, seen: _Seen) -> None:
    """Wait for a process to end, and call `seen` each time that it wrote more."""
    end, size = time.monotonic() + limit_s, 0
    while (left := end - time.monotonic()) > 0 and process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left, _LOOK_S))
        before, size = size, file.stat().st_size if file.exists() else 0
        if size > before:
            seen(read_lines(file))
