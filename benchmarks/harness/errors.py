"""What goes wrong in a benchmark: one line, and what to do about it."""

from __future__ import annotations

from rism.runtime.errors import RismError

__all__ = ["ConfigError", "DiffersError", "NoRoomError", "ScenarioError"]


class ConfigError(RismError):
    """A configuration names what is not there."""


class DiffersError(RismError):
    """A way of computing gives another result than the baseline: its time means nothing."""


class NoRoomError(RismError):
    """The device's memory cannot hold what a variant keeps."""


class ScenarioError(RismError):
    """A scenario cannot be measured here."""
