"""One dataset in REFER's layout for all tests that read it."""

from pathlib import Path

import pytest

from rism.evaluation.datasets.sample import Dataset


@pytest.fixture(scope="session")
def refer_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no test changes."""
    from tests.evaluation.datasets.refcoco_files import write_refer  # needs pycocotools

    return write_refer(tmp_path_factory.mktemp("refer"))


@pytest.fixture(scope="session")
def refer(refer_root: Path) -> Dataset:
    """Its split val."""
    from rism.evaluation.datasets.open import open_dataset
    from rism.evaluation.datasets.request import DatasetRequest

    return open_dataset(DatasetRequest("refcoco", root=refer_root))
