"""Every block of the README and of docs/usage.md runs, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import EXAMPLES, ROOT

README = (ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else ""
USAGE = (ROOT / "docs/usage.md").read_text() if README else ""
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README + USAGE, re.DOTALL | re.MULTILINE)
# These install, or need an installation: test_lean.py runs the middle two, test_distribution.py
# checks the hint like the first, and whoever reads this line runs the last.
INSTALLING = [
    'pip install "rism-seg[cpu] @ file://$PWD"'
    "    # in a checkout of this repository, Python 3.11 to 3.14\n",
    "make demo\n",
    'source .venv/bin/activate\nrism run examples/street.png "the green van" -o van.png\n',
    "make test\n",
]
RUNNABLE = [block for block in BLOCKS if block[1] not in INSTALLING]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples and a `rism` on the path; the blocks run here in order."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "bin").mkdir()
    (folder / "bin/rism").write_text(f'#!/bin/sh\nexec {sys.executable} -m rism "$@"\n')
    (folder / "bin/rism").chmod(0o755)
    return folder


def test_how_to_install_is_said() -> None:
    assert [code for _, code in BLOCKS if code in INSTALLING] == INSTALLING
    assert BLOCKS[0][1] == INSTALLING[0]
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_blocks_are_of_a_kind_that_is_tested() -> None:
    assert {language for language, _ in BLOCKS} <= {"bash", "python"}
    assert {"bash", "python"} <= {language for language, _ in RUNNABLE}


@pytest.mark.parametrize(("language", "code"), RUNNABLE, ids=range(len(RUNNABLE)))
def test_block(language: str, code: str, place: Path) -> None:
    shell = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
    path = f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    run = subprocess.run(
        [*shell, code], cwd=place, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stderr
