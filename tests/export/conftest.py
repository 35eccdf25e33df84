"""A small random FLUX.2-klein checkpoint in the published layout, and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

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
