"""Running scenarios: each in processes of its own, with a time limit; what came of it.

Rows are read while they are measured, and those of a process that is ended are kept.
"""

from __future__ import annotations

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

from benchmarks.child import Line, answer, read_answer
from benchmarks.config import Scenario
from benchmarks.harness.measure import versions
from benchmarks.harness.rows import NOT_REACHED, Job, Row, failed
from benchmarks.results import summary
from benchmarks.scenarios import KINDS
from rism.runtime.errors import one_line

__all__ = ["longest_s", "run_here", "run_scenario"]

ROOT = Path(__file__).parent.parent
_LOOK_S = 1.0
Watch = Callable[[dict[str, Any]], None]
"""Told what is known of a scenario, as `run_scenario` returns it, each time that it is more."""
_Seen = Callable[[list[Line]], None]


def run_scenario(scenario: Scenario, watch: Watch = lambda _: None) -> dict[str, Any]:
    """Measure a scenario in processes of its own.

    What a process that fails, or takes too long, had measured is kept; what it had not is a row
    that says so; the others are measured.
    """
    return _run(scenario, watch, lambda job, seen: _in_child(job, scenario.time_limit_s, seen))


def run_here(scenario: Scenario) -> dict[str, Any]:
    """Measure a scenario in this process, without a limit: memory is not its alone."""
    return _run(scenario, lambda _: None, lambda job, _: [*answer(job)])


def longest_s(scenario: Scenario) -> int:
    """Seconds that all processes of a scenario may take together."""
    return sum(scenario.time_limit_s for _ in _jobs(scenario))


def _run(
    scenario: Scenario, watch: Watch, ask: Callable[[Job, _Seen], list[Line]]
) -> dict[str, Any]:
    start = time.perf_counter()
    said: dict[str, list[Line]] = {}

    def told(part: str, lines: list[Line]) -> dict[str, Any]:
        said[part] = lines
        return _summary(scenario, said, seconds=time.perf_counter() - start)

    found: dict[str, Any] = {}
    for part, job in _jobs(scenario):

        def seen(lines: list[Line], part: str = part) -> None:
            watch(told(part, lines))

        found = told(part, ask(job, seen))
    return found


def _summary(
    scenario: Scenario, said: Mapping[str, list[Line]], *, seconds: float
) -> dict[str, Any]:
    """Put together what the parts of a scenario said so far."""
    rows: list[Row] = []
    found = versions(KINDS[scenario.kind].packages)
    gpu: object = None
    for part, lines in said.items():
        own: dict[tuple[str, str], Row] = {}
        reason: str | None = None
        for line in lines:
            if "row" in line:
                row = _row(line["row"])
                own[row.group, row.name] = row  # what was announced is replaced by its figure
            reason = line.get("reason", reason)
            found |= line.get("versions", {})
            gpu = line.get("gpu", gpu)
        if reason is not None:
            ended = {k: row for k, row in own.items() if row.reason == NOT_REACHED}
            own |= {key: replace(row, reason=reason) for key, row in ended.items()}
            if not ended:
                own["", part] = failed(part or scenario.name, reason)
        rows += own.values()
    return summary(scenario, rows, found, seconds=seconds, gpu=gpu)


def _jobs(scenario: Scenario) -> Iterator[tuple[str, Job]]:
    """Give each process's share, and what to call it."""
    alone = KINDS[scenario.kind].alone
    parameters = dict(scenario.parameters)
    if alone is None:
        yield "", Job(scenario.kind, scenario.runs, scenario.warm_up, parameters)
        return
    listed = parameters[alone]
    assert isinstance(listed, list), "a kind splits along a list"
    for value in listed:
        share = parameters | {alone: [value]}
        yield str(value), Job(scenario.kind, scenario.runs, scenario.warm_up, share)


def _in_child(job: Job, limit_s: int, seen: _Seen) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "answer.jsonl", Path(folder) / "errors.txt"
        command = [sys.executable, "-m", "benchmarks.child", json.dumps(asdict(job)), str(file)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": paths},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # it starts others, which end with it
            )
        try:
            _wait(process, file, limit_s, seen)
        finally:
            code = process.poll()
            if code is None:  # it took too long, or this process is to end
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines, said = read_answer(file), errors.read_text(errors="replace").strip()
        if code is None:
            return [*lines, {"reason": f"was not done after {limit_s} s"}]
        if code != 0:
            last = said.splitlines()[-1:] or ["it said nothing"]
            return [*lines, {"reason": f"exit code {code}: {one_line(last[0])}"}]
        if said and any("reason" in line for line in lines):
            print(said, file=sys.stderr, flush=True)
        return lines


def _wait(process: subprocess.Popen[bytes], file: Path, limit_s: int, seen: _Seen) -> None:
    """Wait for a process to end, at most so long, and tell each time that it wrote more."""
    end, size = time.monotonic() + limit_s, 0
    while (left := end - time.monotonic()) > 0 and process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left, _LOOK_S))
        before, size = size, file.stat().st_size if file.exists() else 0
        if size > before:
            seen(read_answer(file))


def _row(given: Mapping[str, Any]) -> Row:
    return Row(**{**given, "values": tuple(given["values"])})
