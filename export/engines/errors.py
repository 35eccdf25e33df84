"""The error of an engine build."""

from __future__ import annotations

from rism.export.errors import ExportError

__all__ = ["BuildError"]


class BuildError(ExportError):
    """An engine could not be built, or is not what was asked for."""
