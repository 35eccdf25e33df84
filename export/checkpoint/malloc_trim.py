"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes

__all__ = ["trim_malloc"]


def trim_malloc() -> None:
    """Return what was freed and is kept for later.

    The C library of most Linux systems keeps freed blocks of some tens of MB, the size of a
    weight, and where they lie between others it takes new ones all the same: a tenth of all that
    was read stays. Elsewhere this does nothing.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has no such function
