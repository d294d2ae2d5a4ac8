"""How the programs in tools/ end, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from octvideo.program import end_with

def main():
    print("a line\\n" * {lines})
    return 3

end_with(main)
"""


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "while it writes"])
def test_a_program_whose_reader_has_gone_ends_without_a_word(lines: int) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", PROGRAM.format(lines=lines)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_program_ends_with_what_its_main_function_returns() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(lines=1)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, "a line", "")
