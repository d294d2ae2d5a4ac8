"""Memory in large pages is as torch's own: aligned, apart from each other, and freed."""

from __future__ import annotations

import gc
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
    pool = Pool()
    for _ in range(200):  # 6.4 GB, if it stayed
        pool.empty(2**23 - 16).fill_(1)
    gc.collect()
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells the memory in use")
    kilobytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    assert kilobytes < 4 * 2**20


def test_the_system_gives_large_pages() -> None:
    setting, rollup = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps_rollup")
    if not rollup.exists() or not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("a system without them")

    def in_large_pages() -> int:
        return next(int(line.split()[1]) for line in rollup.read_text().splitlines() if line.startswith("AnonHuge"))

    before = in_large_pages()
    x = empty_in_large_pages(32 * PAGE).fill_(1)
    if in_large_pages() == before:
        pytest.skip("it has none free")
    assert in_large_pages() - before <= 33 * 2048 and x.data_ptr() % 2**21 == 0
