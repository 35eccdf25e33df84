"""The distribution has one name, and hints lead to it: `rism` on PyPI is somebody else's."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rism.runtime.distribution import DISTRIBUTION, install_hint
from tests.paths import ROOT

TEXTS = {".cpp", ".cu", ".hpp", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}
# An extra, an installation or a look-up of `rism`; neither its import nor its command.
WRONG = re.compile(
    r"(?<![\w/-])rism\[[a-z{]"
    r"|pip3? (?:install|download|show|uninstall)(?:\s+-\S+)*\s+[\"']?rism(?![\w-])"
    r"|(?:version|distribution|requires|metadata)\([\"']rism[\"']\)"
)


def test_no_other_name_is_said_anywhere() -> None:
    for text in ('"rism[gpu]"', "pip install -U rism", 'f"rism[{extra}]"', "version('rism')"):
        assert WRONG.search(text), text
    for text in ("rism-seg[gpu]", "pip install rism_seg-0.1.0-py3-none-any.whl", "rism run"):
        assert not WRONG.search(text), text
    files = [file for file in ROOT.iterdir() if file.is_file()]
    for folder in ROOT.iterdir():
        if folder.is_dir() and (folder.name in (".ci", ".github") or folder.name[0] not in "."):
            files += folder.rglob("*")
    wrong, read = [], 0
    for file in files:
        apart = {"build", "dist", "__pycache__"} & set(file.relative_to(ROOT).parts)
        if file.suffix in TEXTS and file.is_file() and not apart and file != Path(__file__):
            read += 1
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                if WRONG.search(line):
                    wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert read > 400
    assert wrong == []


def test_pyproject_has_the_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    extras = project["optional-dependencies"]
    named = set(re.findall(rf"{DISTRIBUTION}\[([\w,-]+)\]", str(extras)))
    assert {extra for each in named for extra in each.split(",")} <= set(extras)


def test_in_a_checkout_the_hint_installs_the_checkout() -> None:
    assert shlex.split(install_hint("gpu")) == ["pip", "install", "-e", f"{ROOT}[gpu]"]


@pytest.mark.parametrize(
    ("origin", "installed"),
    [
        ({"url": "file:///a%20b/rism", "dir_info": {}}, "/a b/rism[cpu]"),
        ({"url": "file:///w/rism_seg-0.1-py3-any.whl"}, "/w/rism_seg-0.1-py3-any.whl[cpu]"),
        ({"url": "https://x/r.git", "vcs_info": {"vcs": "git"}}, "rism-seg[cpu] @ git+https://x/r.git"),
        ({"url": "https://x/r.whl", "archive_info": {}}, "rism-seg[cpu] @ https://x/r.whl"),
        (None, "rism-seg[cpu]"),
    ],
)  # fmt: skip
def test_installed_the_hint_leads_where_it_came_from(
    origin: dict[str, Any] | None, installed: str, tmp_path: Path
) -> None:
    """What pip keeps about a package's origin (PEP 610), beside a copy of the module."""
    shutil.copy(ROOT / "runtime/distribution.py", tmp_path / "hints.py")
    about = tmp_path / "rism_seg-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rism-seg\nVersion: 0.1.0\n")
    if origin:
        (about / "direct_url.json").write_text(json.dumps(origin))
    code = "import sys; sys.path[:0] = sys.argv[1:]; import hints; print(hints.install_hint('cpu'))"
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert shlex.split(run.stdout) == ["pip", "install", installed]
