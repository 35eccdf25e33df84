from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build folder for all tests of tests/cpp/CMakeLists.txt."""
    return tmp_path_factory.mktemp("cpp")
