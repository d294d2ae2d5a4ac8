"""Memory in large pages is as torch's own: aligned, apart from each other, and freed."""

from __future__ import annotations

import gc
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from octvideo.octave.kernel.large_pages import Pool, empty_in_large_pages

PAGE = 2**19  # numbers


@pytest.mark.parametrize("count", [1, PAGE - 1, PAGE, 3 * PAGE + 5])
def test_all_of_it_can_be_written(count: int) -> None:
    x = empty_in_large_pages(count)
    assert x.shape == (count,) and x.dtype == torch.float32 and x.is_contiguous()
    assert torch.equal(x.copy_(torch.arange(count)), torch.arange(count).float())


def test_tensors_of_a_pool_lie_apart_and_begin_with_a_cache_line() -> None:
    pool, generator = Pool(), torch.Generator().manual_seed(0)
    counts = [1, 17, 9 * 2**20, *torch.randint(1, 2**21, (30,), generator=generator).tolist()]
    tensors = [pool.empty(count) for count in counts]
    assert [len(x) for x in tensors] == counts
    assert all(x.data_ptr() % 64 == 0 for x in tensors)
    for n, x in enumerate(tensors):
        x.fill_(n)
    assert all((x == n).all() for n, x in enumerate(tensors))
    places = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors)
    assert all(end <= start for (_, end), (start, _) in pairwise(places))


def test_what_is_not_used_any_more_is_given_back() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells the memory in use")

    def kilobytes() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))

    pool, before = Pool(), kilobytes()
    for _ in range(50):  # 1.6 GB, if it stayed
        pool.empty(2**23 - 16).fill_(1)
    gc.collect()
    assert kilobytes() - before < 2**19


def test_the_system_gives_large_pages() -> None:
    setting, maps = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps")
    if not maps.exists() or not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("a system without them")
    x = empty_in_large_pages(32 * PAGE).fill_(1)
    assert x.data_ptr() % 2**21 == 0
    is_here, kilobytes = False, 0  # of the mapping that holds x: the system makes other memory large when it likes
    for line in maps.read_text().splitlines():
        if address := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_here = int(address[1], 16) <= x.data_ptr() < int(address[2], 16)
        elif is_here and line.startswith("AnonHuge"):
            kilobytes = int(line.split()[1])
    if kilobytes == 0:
        pytest.skip("it has none free")
    assert kilobytes >= 2048


def test_memory_of_a_pool_is_written_to_in_any_mode() -> None:
    pool = Pool()
    with torch.inference_mode():
        pool.empty(4).fill_(1)
    assert pool.empty(4).copy_(torch.arange(4)).sum() == 6
