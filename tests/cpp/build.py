"""Configuring, building and running the C++ parts, with what a developer's install brings."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.paths import EXAMPLES, ROOT

TESTS, EXAMPLE = ROOT / "tests/cpp", EXAMPLES / "cpp"


def need(reason: str) -> None:
    """Fail in CI, where a missing tool would go unseen; elsewhere skip and say why."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str) -> str:
    """Path of cmake or ctest: of this environment (the wheel of that name), or the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        need(f"{name} is missing: pip install cmake, or apt-get install cmake")
    return str(found)


def json_include() -> str:
    """Where nlohmann/json.hpp is: in its wheel, else cmake looks in the system's folders."""
    spec = importlib.util.find_spec("nlohmann_json")
    if spec is None or not spec.submodule_search_locations:
        return ""
    folder = Path(next(iter(spec.submodule_search_locations))) / "include"
    return f"-DNLOHMANN_JSON_INCLUDE={folder}"


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program and capture what it says."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def build(source: Path, folder: Path, *settings: str, target: str = "all") -> Path:
    """Configure and build with warnings as errors; a failure is the test's."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        need("a C++ compiler is missing: apt-get install g++ (it belongs to gcc)")
    import fcntl  # not on Windows

    # It compiles fastest without optimisation and symbols. One generator everywhere, or a
    # folder could not be used again.
    configure = [tool("cmake"), "-S", source, "-B", folder, "-G", "Unix Makefiles"]
    configure += ["-DRISM_STRICT=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
    configure += [flag for flag in (json_include(), *settings) if flag]
    make = [tool("cmake"), "--build", folder, "--parallel", "2", "--target", target]
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes build there, too
        for command in (configure, make):
            done = run(command)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder
