from __future__ import annotations

from pathlib import Path

import pytest

from tests.cpp.build import TESTS, build


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build folder for all tests of tests/cpp/CMakeLists.txt."""
    return tmp_path_factory.mktemp("cpp")


@pytest.fixture(scope="session")
def built(cpp_build: Path) -> Path:
    return build(TESTS, cpp_build)


@pytest.fixture(scope="session")
def reader(built: Path) -> Path:
    return built / "reader_test"
