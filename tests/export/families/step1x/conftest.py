"""Small random checkpoints of Step1X-Edit."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each version; tests that change files copy them first."""
    from tests.export.families.step1x.small_model import VERSIONS, make_step1x

    root = tmp_path_factory.mktemp("step1x")
    return {version: make_step1x(root / version, version) for version in VERSIONS}
