from pathlib import Path
from typing import Any

import pytest

from rism.runtime import engines


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graph files that were loaded, in order."""
    files: list[str] = []
    real = engines._session

    def session(file: Path, *arguments: Any) -> Any:
        files.append(file.name)
        return real(file, *arguments)

    monkeypatch.setattr(engines, "_session", session)
    return files
