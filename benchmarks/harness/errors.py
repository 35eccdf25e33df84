"""Errors of a benchmark."""

import traceback

from rism.runtime.errors import RismError


class ConfigError(RismError):
    """A configuration names what is not there."""


class DiffersError(RismError):
    """A way of computing gives another result than the baseline: its time means nothing."""


class ScenarioError(RismError):
    """A scenario cannot be measured here."""


def reason(error: Exception) -> dict[str, str]:
    """Return the facts of a row without a figure: the error, and where it was raised."""
    last = "".join(traceback.format_exception(error)[-3:])
    return {"failed": f"{type(error).__name__}: {str(error)[:600]}", "trace": last[-1200:]}
