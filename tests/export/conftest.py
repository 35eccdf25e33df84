"""A small random FLUX.2-klein checkpoint in the published layout, and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from rism.export import ExportOptions, ExportReport, export_bundle
from tests.export.small import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-klein")


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The checkpoint as a bundle with all three capture modes and per-token attention."""
    output = tmp_path_factory.mktemp("bundles") / "tiny"
    options = ExportOptions(captures=("vectors", "matrices", "scores"), token_attention=True)
    return export_bundle(str(checkpoint), output, options)
