"""One process's share of a scenario: what `benchmarks.run` starts, so that it can end it.

`python -m benchmarks.child JOB FILE`: reads a job as JSON, writes rows and versions to FILE.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import environment, versions
from benchmarks.rows import Job
from benchmarks.scenarios import KINDS
from rism.runtime.errors import RismError, one_line

__all__ = ["answer"]


def answer(job: Job) -> dict[str, Any]:
    """Measure, and say on what: {"rows": ..., "versions": ...}, or {"reason": ...}."""
    kind = KINDS[job.kind]
    try:
        found: dict[str, Any] = {"rows": [asdict(row) for row in kind.load()(job)]}
    except RismError as error:
        found = {"reason": str(error)}
    except Exception as error:  # whatever a library raises is the end of this scenario alone
        traceback.print_exc()
        found = {"reason": f"{type(error).__name__}: {one_line(error)}"}
    found["versions"] = versions(kind.packages)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = environment(gpu=True)["gpu"]
    return found


def main() -> None:
    """Read the job, write the answer."""
    job = Job(**json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(answer(job)))


if __name__ == "__main__":
    main()
