"""A machine with a GPU and little else: its tests are found without the extras of all others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytest.importorskip("torch")

BLOCK = """
import sys

MISSING = {
    "accelerate", "cmake", "cupy", "diffusers", "matplotlib", "ml_dtypes", "onnx", "onnx_ir",
    "onnxruntime", "onnxscript", "polygraphy", "psutil", "pyarrow", "pycocotools", "tensorrt",
    "tensorrt_rtx", "triton", "tritonclient",
}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_tests_of_the_gpu_are_found(tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(BLOCK)
    command = ["-m", "pytest", "-p", "block", "-p", "no:cacheprovider", "-m", "gpu"]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, *command, "--collect-only", "-q"], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^SKIPPED .*: pycocotools is not installed$", run.stdout, re.MULTILINE)
    found = set(re.findall(r"^(tests/\S+\.py)::", run.stdout, re.MULTILINE))
    marked = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in file.read_text() and file != Path(__file__)
    }
    assert found == marked and "tests/export/probe/test_gpu.py" in marked
