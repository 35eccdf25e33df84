"""The runtime stays light: what it imports, and when."""

import subprocess
import sys

from tests.paths import ROOT


def _imported(code: str) -> set[str]:
    code += "; import sys; print(' '.join({m.partition('.')[0] for m in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"numpy", "PIL", "tokenizers", "onnxruntime", "torch", "onnx"}
    assert not heavy & _imported("import rism.runtime")


def test_the_segmenter_needs_no_torch_and_loads_no_engine_yet() -> None:
    never = {"torch", "diffusers", "transformers", "onnx", "onnxruntime"}
    assert not never & _imported("from rism.runtime import Segmenter")
