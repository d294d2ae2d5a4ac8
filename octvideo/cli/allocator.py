"""The C library's allocator, for processes that compute with maps of many megabytes again and again."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, where its allocator is the GNU C library's.

    Else large maps are given back to the system and come as new pages, which it clears one by one: of I3D-50's 220 ms
    a clip 4 to 15, by luck of the order of allocations, and of a training step of Oct-I3D-50 on two clips 500 of 1,900.
    What the process has used at most stays its own until it ends, so that tools call this and libraries do not.

    Returns:
        Whether the allocator took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
