"""Running scenarios: each in processes of its own, with a time limit; what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.child import answer
from benchmarks.config import Scenario
from benchmarks.measure import versions
from benchmarks.results import summary
from benchmarks.rows import Job, Row, failed
from benchmarks.scenarios import KINDS
from rism.runtime.errors import one_line

__all__ = ["run_here", "run_scenario"]

ROOT = Path(__file__).parent.parent
Answer = dict[str, Any]


def run_scenario(scenario: Scenario) -> dict[str, Any]:
    """Measure a scenario in processes of its own.

    A process that fails, or takes too long, is a row that says so; the others are measured.
    """
    return _run(scenario, lambda job: _in_child(job, scenario.time_limit_s))


def run_here(scenario: Scenario) -> dict[str, Any]:
    """Measure a scenario in this process, without a limit: memory is not its alone."""
    return _run(scenario, answer)


def _run(scenario: Scenario, ask: Callable[[Job], Answer]) -> dict[str, Any]:
    start = time.perf_counter()
    rows: list[Row] = []
    found = versions(KINDS[scenario.kind].packages)
    gpu: object = None
    for part, job in _jobs(scenario):
        said = ask(job)
        found |= said.get("versions", {})
        gpu = said.get("gpu", gpu)
        if "reason" in said:
            rows.append(failed(part or scenario.name, said["reason"]))
        else:
            rows += [_row(each) for each in said["rows"]]
    return summary(scenario, rows, found, seconds=time.perf_counter() - start, gpu=gpu)


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


def _in_child(job: Job, limit_s: int) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.child", json.dumps(asdict(job)), str(file)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it starts others, which end with it
        )
        try:
            _, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return {"reason": f"was not done after {limit_s} s"}
        finally:
            if process.poll() is None:  # it took too long, or this process is to end
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0 or not file.exists():
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            return {"reason": f"exit code {process.returncode}: {one_line(last[0])}"}
        found: Answer = json.loads(file.read_text())
        if "reason" in found and said.strip():
            print(said.rstrip(), file=sys.stderr, flush=True)
        return found


def _row(given: Mapping[str, Any]) -> Row:
    return Row(**{**given, "values": tuple(given["values"])})
