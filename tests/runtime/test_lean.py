"""The runtime stays light: what it imports, and when."""

import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import rism.runtime", "numpy PIL tokenizers onnxruntime torch onnx"),
        ("from rism.runtime import Segmenter", "torch diffusers transformers onnx onnxruntime"),
    ],
)
def test_nothing_heavy_is_imported(code: str, absent: str) -> None:
    code += f"; import sys; print({{*{absent.split()}}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert run.stdout == b"set()\n"
