"""Imports of the parts of rism that need more packages than the runtime does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rism.runtime.distribution import install_hint
from rism.runtime.errors import RismError

__all__ = ["import_extra"]


def import_extra(module: str, *, command: str, extra: str) -> Any:
    """Import a module of rism for `rism COMMAND`, or name the extra to install for it.

    Raises:
        RismError: one of them is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.partition(".")[0] == "rism":
            raise
        raise RismError(
            f"rism {command} needs {missing}, which is not installed: {install_hint(extra)}"
        ) from error
