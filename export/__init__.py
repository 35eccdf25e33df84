"""The exporting half: from a PyTorch checkpoint to a bundle, and on from there.

Names are imported when first asked for: what works on finished bundles does without PyTorch.
What reads a checkpoint needs the `export` extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rism.export.errors import (
        CheckpointError,
        ExportError,
        ParityError,
        UnsupportedModelError,
    )
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

_HOMES = {
    "CheckpointError": "errors",
    "ExportError": "errors",
    "ExportOptions": "options",
    "ExportPlan": "plan",
    "ExportReport": "options",
    "ParityError": "errors",
    "Progress": "progress",
    "TerminalProgress": "progress",
    "UnsupportedModelError": "errors",
    "export_bundle": "bundle",
    "plan_export": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
