"""Return freed memory to the operating system."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BYTES = 2**20


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


def return_large_blocks() -> None:
    """Have blocks of a MiB and more returned to the operating system as soon as they are freed.

    The C library of most Linux systems raises that limit to 32 MiB as it meets such blocks, and
    then keeps them. On other systems this does nothing.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    except (AttributeError, OSError, TypeError):
        return
