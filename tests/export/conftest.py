"""A small random FLUX.2-klein checkpoint in the published layout, and its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

COMMIT = "0123456789abcdef0123456789abcdef01234567"

if TYPE_CHECKING:
    from rism.export import ExportReport


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.export.small import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-klein")


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The checkpoint as a bundle with all three capture modes and per-token attention."""
    from rism.export import ExportOptions, export_bundle

    output = tmp_path_factory.mktemp("bundles") / "tiny"
    options = ExportOptions(captures=("vectors", "matrices", "scores"), token_attention=True)
    return export_bundle(str(checkpoint), output, options)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An empty cache of the model hub; a call returns where a repository's snapshot is to be."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def snapshot(hub_id: str) -> Path:
        folder = cache / f"models--{hub_id.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(COMMIT)
        return folder / "snapshots" / COMMIT

    return snapshot
