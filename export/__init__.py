"""The exporting half: from a PyTorch checkpoint to a bundle. Needs the `export` extra."""

from __future__ import annotations

from rism.export.bundle import ExportReport, export_bundle
from rism.export.errors import CheckpointError, ExportError, ParityError, UnsupportedModelError

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportReport",
    "ParityError",
    "UnsupportedModelError",
    "export_bundle",
]
