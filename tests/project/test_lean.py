"""A service installs `rism-seg[cpu]` and gets no torch: from a checkout, and from a wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.paths import ROOT, STREET

EXPORT_ONLY = (
    "accelerate", "diffusers", "onnx", "onnx_ir", "onnxscript", "polygraphy", "safetensors",
    "torch", "transformers",
)  # fmt: skip
KEEP = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))}
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
        python = self.checkout / ".venv/bin/python"
        return _run(python, "-I", "-c", code, cwd=self.checkout.parent)


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Lean:
    checkout = tmp_path_factory.mktemp("lean") / "rism"
    shutil.copytree(ROOT, checkout, ignore=LEFT_BEHIND)
    return Lean(checkout, _run("make", "demo", f"PYTHON={sys.executable}", cwd=checkout))


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
        run = _run("bash", "-euc", lines, cwd=lean.checkout)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith('examples/street.png "the green van": box ')

    def test_an_export_can_be_planned(self, lean: Lean) -> None:
        run = lean.python(
            "import sys; from rism.cli import main; "
            "sys.argv = 'rism export --model mini -o half --dry-run'.split(); main()"
        )
        assert run.returncode == 0, run.stderr
        assert "PyTorch is not installed" in run.stdout

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
        rism = lean.checkout / ".venv/bin/rism"
        run = _run(rism, "export", "--model", "mini", "-o", "out", cwd=lean.checkout.parent)
        assert run.returncode == 1
        assert run.stderr.startswith("error: rism export needs ")
        assert run.stderr.endswith(f"is not installed: pip install '{lean.checkout}[export]'\n")
        assert run.stderr.count("\n") == 1


def _run(*command: "str | Path", cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=cwd, env=KEEP, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def wheel(lean: Lean) -> Path:
    """What `make dist` builds, the wheel from the sdist."""
    run = _run("make", "dist", f"PYTHON={sys.executable}", cwd=lean.checkout)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert run.stdout.count("PASSED") == 2
    assert len(list((lean.checkout / "dist").glob("rism_seg-*.tar.gz"))) == 1
    [wheel] = (lean.checkout / "dist").glob("rism_seg-*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.network
class TestWheel:
    def test_it_has_what_the_checkout_installs(self, lean: Lean, wheel: Path) -> None:
        [site] = lean.checkout.glob(".venv/lib/python*/site-packages")
        files = {path for path in (site / "rism").rglob("*") if path.suffix != ".pyc"}
        installed = {str(path.relative_to(site)) for path in files if path.is_file()}
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if name.startswith("rism/")}
        assert names == installed

    def test_it_runs_where_nothing_else_is(self, lean: Lean, wheel: Path, tmp_path: Path) -> None:
        _run(sys.executable, "-m", "venv", "env", cwd=tmp_path)
        pins = lean.checkout / "constraints.txt"
        pip = ("env/bin/pip", "install", "-q", "-c", pins, f"{wheel}[cpu]")
        made = _run(*pip, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        run = _run("env/bin/rism", "run", STREET, "the green van", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert ' "the green van": box ' in run.stdout
        assert (tmp_path / "street.the-green-van.mask.png").is_file()
        hint = _run("env/bin/rism", "export", "--model", "mini", "-o", "out", cwd=tmp_path)
        assert hint.stderr.endswith(f": pip install '{wheel}[export]'\n")
