"""Return freed memory to the operating system."""

import ctypes


def trim_malloc() -> None:
    """Return memory that the C library keeps after it was freed.

    The C library of most Linux systems keeps freed blocks of some tens of MB, the size of a
    weight, and fragments them: about a tenth of all that was read would stay in memory. On other
    systems this does nothing.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has no such function
