"""The exporting half: from a PyTorch checkpoint to a bundle. Needs the `export` extra."""

from __future__ import annotations

from rism.export.bundle import export_bundle, plan_export
from rism.export.errors import CheckpointError, ExportError, ParityError, UnsupportedModelError
from rism.export.options import ExportOptions, ExportReport
from rism.export.plan import ExportPlan
from rism.export.progress import Progress, TerminalProgress

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportOptions",
    "ExportPlan",
    "ExportReport",
    "ParityError",
    "Progress",
    "TerminalProgress",
    "UnsupportedModelError",
    "export_bundle",
    "plan_export",
]
