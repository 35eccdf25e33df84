"""From a PyTorch checkpoint to a bundle, and from a bundle to engines.

Names are imported on first use, so that work on finished bundles does without PyTorch. Reading a
checkpoint needs the `export` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rism.lazy_names import lazy_names

if TYPE_CHECKING:
    from rism.export.errors import CheckpointError, ExportError, ParityError, UnsupportedModelError
    from rism.export.exporter import export_bundle, plan_export
    from rism.export.options import ExportOptions, ExportReport
    from rism.export.plan.checkpoint_plan import ExportPlan
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "errors": ["CheckpointError", "ExportError", "ParityError", "UnsupportedModelError"],
        "exporter": ["export_bundle", "plan_export"],
        "options": ["ExportOptions", "ExportReport"],
        "plan.checkpoint_plan": ["ExportPlan"],
        "progress": ["Progress", "TerminalProgress"],
    },
)
