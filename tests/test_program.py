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


def test_another_pipe_that_breaks_is_an_error() -> None:
    program = "from octvideo.program import end_with\ndef main(): raise BrokenPipeError('of a child')\nend_with(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError: of a child" in done.stderr


def test_a_program_without_an_output_ends_well() -> None:
    program = "from octvideo.program import end_with\nend_with(lambda: 0)"
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
