import os
from pathlib import Path

import pytest

from tests.cpp.build import TESTS, build


@pytest.fixture(scope="session")
def cpp_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build folder for all tests of tests/cpp/CMakeLists.txt, in all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built(cpp_build: Path) -> Path:
    return build(TESTS, cpp_build)


@pytest.fixture(scope="session")
def reader(built: Path) -> Path:
    return built / "reader_test"
