"""`python -m benchmarks.harness.with_peak FILE export ...`: run rism, write its peak memory.

The kernel's own high-water mark of this process; `getrusage` would count what the parent held
when it started it.
"""

from __future__ import annotations

import atexit
import sys
from pathlib import Path

from rism.runtime.cli import main

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes() -> int:
    """The most memory that this process ever held, mapped files included (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell a process's peak memory")


if __name__ == "__main__":
    target = Path(sys.argv.pop(1))
    atexit.register(lambda: target.write_text(f"{peak_memory_bytes()}\n"))
    main()
