"""Imports of packages that an extra of this distribution installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rism.runtime.distribution import install_hint
from rism.runtime.errors import RismError

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(extra: str, command: str) -> Iterator[None]:
    """Name the extra to install when an import that `rism COMMAND` needs lacks a package.

    Raises:
        RismError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.partition(".")[0] == "rism":
            raise
        raise RismError(
            f"rism {command} needs {missing}, which is not installed: {install_hint(extra)}"
        ) from error
