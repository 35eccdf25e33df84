"""A command that lacks a package names the extra that brings it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rism.runtime.distribution import install_hint
from tests.cli.conftest import invoke
from tests.paths import EXAMPLES, STREET


@pytest.mark.parametrize(
    ("package", "extra", "line"),
    [
        ("torch", "export", ["export", "--model", "mini", "-o", "out"]),
        ("torch", "export", ["refine", str(STREET), "a", "--model", "step1x", "-o", "i.json"]),
        ("torch", "export", ["ablate", "scenes", "-o", "out"]),
        ("matplotlib", "eval", ["ablate", "scenes", "-o", "out"]),
        ("onnx_ir", "triton", ["export-triton", "-o", "out"]),
        ("onnx_ir", "build", ["build", "bundle"]),
        ("polygraphy", "build", ["build", "bundle"]),
        ("onnx_ir", "calibrate", ["calibrate", "bundle", "--images", str(EXAMPLES)]),
        ("ray", "batch", ["map", str(EXAMPLES), "-o", "out", "-e", "it"]),
        ("pycocotools", "eval", ["eval", "refcoco", "--root", "."]),
    ],
)
def test_a_missing_package(
    tiny_bundle: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    forget_modules: Callable[..., None],
    package: str,
    extra: str,
    line: list[str],
) -> None:
    (workplace / "bundle").symlink_to(tiny_bundle)
    (workplace / "refcoco").mkdir()
    parts = ("rism.export", "rism.batch", "rism.calibration", "rism.evaluation", f"{package}.")
    forget_modules(*parts)
    monkeypatch.setitem(sys.modules, package, None)
    assert invoke(*line, code=1).stderr.splitlines()[-1] == (
        f"error: rism {line[0]} needs {package}, which is not installed: {install_hint(extra)}"
    )
