"""A service installs `rism-seg[cpu]` and gets no torch: shown on a fresh environment."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXPORT_ONLY = (
    "accelerate", "diffusers", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch",
    "transformers",
)  # fmt: skip
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", ".*_cache", "*.pyc")


def test_no_file_of_the_runtime_imports_what_only_the_export_needs() -> None:
    for file in (ROOT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in EXPORT_ONLY, f"{file}:{node.lineno}"


@dataclass(frozen=True)
class Lean:
    """A copy of the checkout after the README's first command."""

    checkout: Path
    demo: "subprocess.CompletedProcess[str]"

    def python(self, code: str) -> "subprocess.CompletedProcess[str]":
        """Run code that can see nothing but the installed packages."""
        return subprocess.run(
            [self.checkout / ".venv/bin/python", "-I", "-c", code],
            capture_output=True, text=True, cwd=self.checkout.parent, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Lean:
    checkout = tmp_path_factory.mktemp("lean") / "rism"
    shutil.copytree(ROOT, checkout, ignore=LEFT_BEHIND)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    demo = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=checkout, env=keep, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    return Lean(checkout, demo)


@pytest.mark.slow
@pytest.mark.network
class TestLeanInstallation:
    def test_the_readmes_first_command_works(self, lean: Lean) -> None:
        assert "\n```bash\nmake demo\n```" in (ROOT / "README.md").read_text()
        assert lean.demo.returncode == 0, lean.demo.stderr
        line = lean.demo.stdout.splitlines()[-1]
        assert line.startswith('examples/street.png "the green van": box ')
        with (
            Image.open(lean.checkout / "examples/street.png") as picture,
            Image.open(lean.checkout / "street.the-green-van.mask.png") as mask,
        ):
            assert mask.size == picture.size
            assert mask.getextrema() == (0, 255)
        assert (lean.checkout / "street.the-green-van.overlay.png").is_file()

    def test_the_lines_after_it_work_as_printed(self, lean: Lean) -> None:
        readme = (ROOT / "README.md").read_text()
        [lines] = re.findall(r"^```bash\n(source .*?)^```$", readme, re.DOTALL | re.MULTILINE)
        keep = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        run = subprocess.run(
            ["bash", "-euc", lines], cwd=lean.checkout, env=keep,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith('examples/street.png "the green van": box ')

    def test_what_only_the_export_needs_is_absent(self, lean: Lean) -> None:
        code = f"from importlib.util import find_spec; print(*filter(find_spec, {EXPORT_ONLY}))"
        assert lean.python(code).stdout == "\n"

    def test_every_submodule_imports(self, lean: Lean) -> None:
        code = (
            "import importlib, pkgutil, rism.runtime as r\n"
            "for m in pkgutil.walk_packages(r.__path__, 'rism.runtime.'):\n"
            "    print(m.name, importlib.import_module(m.name).__file__)\n"
        )
        run = lean.python(code)
        assert run.returncode == 0, run.stderr
        lines = dict(line.split(" ", 1) for line in run.stdout.splitlines())
        for file in (ROOT / "runtime").rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__init__":
                assert ".venv" in lines[".".join(("rism", *parts))]

    def test_the_export_says_what_to_install(self, lean: Lean) -> None:
        run = subprocess.run(
            [lean.checkout / ".venv/bin/rism", "export", "--model", "mini", "-o", "out"],
            capture_output=True, text=True, cwd=lean.checkout.parent, check=False,
        )  # fmt: skip
        assert run.returncode == 1
        assert run.stderr.startswith("error: rism export needs ")
        assert run.stderr.endswith(f"is not installed: pip install '{lean.checkout}[export]'\n")
        assert run.stderr.count("\n") == 1
