"""`python -m benchmarks.child TASK FILE`: one process's share of a scenario.

It reads a task as JSON, and appends a line of JSON to FILE whenever a row is known, so that whoever
ends this process has all rows before.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import environment, versions
from benchmarks.harness.rows import Task
from benchmarks.scenarios import KINDS
from rism.runtime.errors import RismError, one_line

Line = dict[str, Any]
"""{"row": ...}, {"reason": why there are no more} or {"versions": ..., "gpu": ...}."""


def measure(task: Task) -> Iterator[Line]:
    """Give out each row as soon as it is known, and what it was measured on."""
    kind = KINDS[task.kind]
    try:
        rows = kind.load()(task)
        yield _machine(kind.packages)
        for row in rows:
            yield {"row": asdict(row)}
    except RismError as error:
        yield {"reason": str(error)}
    except Exception as error:  # of any library; other scenarios go on
        traceback.print_exc()
        yield {"reason": f"{type(error).__name__}: {one_line(error)}"}
    yield _machine(kind.packages)  # a GPU's clocks are now those of its work


def _machine(packages: tuple[str, ...]) -> Line:
    found: Line = {"versions": versions(packages)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = environment(gpu=True)["gpu"]
    return found


def read_lines(file: Path) -> list[Line]:
    """Read what a child has written so far, but for a line that it has not finished."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    with Path(sys.argv[2]).open("w", buffering=1) as out:
        for line in measure(Task(**json.loads(sys.argv[1]))):
            out.write(json.dumps(line) + "\n")
