"""Memory that is kept: counted in pages that the system had to clear, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys, threading
import torch
from octvideo.cli.allocator import keep_freed_memory
def use(): maps = [torch.ones(n * 2**18) for n in (40, 36, 8, 20, 40)]
def new_pages():
    for _ in range(4): use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5): use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if sys.argv[1] == "cli":
    from octvideo.cli import main
    main(["fit", "--no_such_key", "1"])
else:
    new_pages()
    assert keep_freed_memory()
new_pages()
# As a decoder's thread has them.
def use():
    maps = [bytearray(25 * 2**20) for n in range(4)]
    while maps: maps.pop(0)
thread = threading.Thread(target=new_pages)
thread.start()
thread.join()
"""
PAGES = 5 * (40 + 36 + 8 + 20 + 40) * 2**20 // 4096


def new_pages(how: str) -> list[int]:
    """Where memory is kept; "keep": before that, too."""
    command = [sys.executable, "-c", SCRIPT, how]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [int(line) for line in said.splitlines() if line.isdecimal()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again() -> None:
    before, kept, in_thread = new_pages("keep")
    # Not none: which free piece an aligned one fits into is luck.
    assert kept < PAGES // 3
    assert in_thread < 500
    if pages_are_small():
        assert before > PAGES // 2  # so that the count means something


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_the_command_line_keeps_it() -> None:
    assert new_pages("cli")[0] < PAGES // 3


def pages_are_small() -> bool:
    """Not so where the system gives huge pages unasked."""
    try:
        return "[always]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return True
