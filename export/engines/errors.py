"""What can go wrong while an engine is built."""

from __future__ import annotations

from rism.export.errors import ExportError

__all__ = ["BuildError"]


class BuildError(ExportError):
    """An engine that could not be built, or that is not what was asked for."""
