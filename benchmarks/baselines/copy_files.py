"""Baseline: the weights of a checkpoint copied on the same disk, which any exporter does at least.

`python -m benchmarks.baselines.copy_files CHECKPOINT FILE` is one process of it.
"""

import os
import shutil
import sys
from pathlib import Path


def copy_files(checkpoint: Path, target: Path) -> None:
    """Copy each file of weights to the disk, one at a time, under the same name."""
    for file in sorted(checkpoint.rglob("*.safetensors")):
        with file.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 16 * 2**20)
            copy.flush()
            os.fsync(copy.fileno())
    target.unlink()


if __name__ == "__main__":
    copy_files(Path(sys.argv[1]), Path(sys.argv[2]))
