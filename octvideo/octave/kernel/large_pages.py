"""Memory in pages of 2 MB, for weights and maps that are read from the cache again and again.

Which sets of the cache a page of 4 kB falls into is luck, and weights that fit into the cache push each other out: the
time of a network varies from process to process (docs/speed.md). Linux gives large pages where it is asked
to (madvise), and by itself where it is set to "always".
"""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor

_PAGE = 2 * 2**20
_CHUNK = 32 * 2**20
_LINE = 64


def empty_in_large_pages(count: int) -> Tensor:
    """`torch.empty(count, dtype=torch.float32)`, in large pages where it fills some and the system has them."""
    size = 4 * count
    if size < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=torch.float32)
    whole_pages = -(-size // _PAGE) * _PAGE
    try:
        memory = mmap.mmap(-1, whole_pages + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(count, dtype=torch.float32)
    elements = torch.frombuffer(memory, dtype=torch.float32)  # keeps the memory
    start = -elements.data_ptr() % _PAGE // 4
    return elements[start : start + count]


class Pool:
    """Tensors that share large pages, since most are smaller than one. Memory is freed 32 MB at a time, after the
    last tensor that lies there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk, self._used = torch.empty(0, dtype=torch.float32), 0

    def empty(self, count: int) -> Tensor:
        """`torch.empty(count, dtype=torch.float32)`, from the start of a cache line on."""
        size = -(-4 * count // _LINE) * _LINE // 4
        # Memory that is made in inference mode could not be written to outside of it.
        with self._lock, torch.inference_mode(False):
            if self._used + size > len(self._chunk):
                if 4 * size >= _CHUNK:
                    return empty_in_large_pages(count)
                self._chunk, self._used = empty_in_large_pages(_CHUNK // 4), 0
            start, self._used = self._used, self._used + size
            return self._chunk[start : start + count]


WEIGHTS = Pool()
