"""The C library's allocator, for processes that compute with maps of many megabytes again and again."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, where its allocator is the GNU C library's.

    Else the allocator gives large maps back to the system and gets them again as new pages, which the system clears
    one by one: that can take a quarter of a training step (docs/speed.md). The process then keeps its peak memory until
    it ends, so tools call this and libraries do not.

    Returns:
        Whether the allocator took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; Windows
        return False
    # Other arenas, which threads get, give memory back all the same: a thread that decodes 4K clears pages otherwise.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_ARENA_MAX, 1))
