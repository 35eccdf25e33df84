"""One process's share of a scenario: what `benchmarks.run` starts, so that it can end it.

`python -m benchmarks.child JOB FILE`: reads a job as JSON and writes to FILE, a line of JSON at a
time, whatever is known as soon as it is: who ends this process has all lines before.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import environment, versions
from benchmarks.harness.rows import Job
from benchmarks.scenarios import KINDS
from rism.runtime.errors import RismError, one_line

__all__ = ["Line", "answer", "read_answer"]

Line = dict[str, Any]
"""{"row": ...}, {"reason": why there are no more} or {"versions": ..., "gpu": ...}."""


def answer(job: Job) -> Iterator[Line]:
    """Measure, and say what is found as it is found, and on what."""
    kind = KINDS[job.kind]
    try:
        rows = kind.load()(job)
        yield _machine(kind.packages)
        for row in rows:
            yield {"row": asdict(row)}
    except RismError as error:
        yield {"reason": str(error)}
    except Exception as error:  # whatever a library raises is the end of this scenario alone
        traceback.print_exc()
        yield {"reason": f"{type(error).__name__}: {one_line(error)}"}
    yield _machine(kind.packages)  # a GPU's clocks are now those of its work


def _machine(packages: tuple[str, ...]) -> Line:
    found: Line = {"versions": versions(packages)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = environment(gpu=True)["gpu"]
    return found


def read_answer(file: Path) -> list[Line]:
    """Read what a child wrote so far; a line that it had not finished is none."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    """Read the job, write the answer."""
    job = Job(**json.loads(sys.argv[1]))
    with Path(sys.argv[2]).open("w", buffering=1) as file:
        for line in answer(job):
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
