"""Files of JSON lines: gone on with after a kill at any byte; what is of something else is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from octvideo.errors import UserError
from octvideo.json_lines import JsonLines, Words

WORDS = Words("diary", "another year", "name another file")
SETTINGS = {"diary": "kind 1", "year": 2019}


def entries_of(file: Path, *more: dict) -> list[dict]:
    """What is there, after these were added."""
    lines = JsonLines(file, SETTINGS, WORDS)
    for entry in more:
        lines.add(entry)
    found = list(lines.entries())
    lines.close()
    return found


def test_a_kill_at_any_byte_takes_the_line_that_was_being_written(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    added = [{"path": "a"}, {"path": "caf\udce9"}, {"path": "c"}]
    assert entries_of(file, *added) == added
    whole = file.read_bytes()
    whole.decode("ascii")
    for size in range(len(whole) + 1):
        file.write_bytes(whole[:size])
        there = max(0, whole[:size].count(b"\n") - 1)
        assert entries_of(file) == added[:there], size
        assert entries_of(file, *added[there:]) == added
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes", "is no diary of this tool: name another file"),
        (b"my notes\nand more\n", "is no diary of this tool"),
        (b'["diary", "kind 1"]\n', "is no diary of this tool"),
        (b'{"diary": "kind 2", "year": 2019}\n', "is no diary of this tool"),
        (
            b'{"diary": "kind 1", "year": 2020}\n{"path": "a',
            r"is of another year \(year: 2020, now 2019\): name another",
        ),
    ],
)
def test_a_file_of_something_else_is_left_alone(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(content)
    for _ in range(2):  # nor is it locked afterwards
        with pytest.raises(UserError, match=message):
            JsonLines(file, SETTINGS, WORDS)
    assert file.read_bytes() == content


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines", SETTINGS, WORDS)
    with pytest.raises(UserError, match=r"another process writes .*lines: wait for it, or name another file"):
        JsonLines(tmp_path / "lines", SETTINGS, WORDS)
    lines.close()
    assert entries_of(tmp_path / "lines") == []


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't write .*lines: No such file or directory"):
        JsonLines(tmp_path / "no folder" / "lines", SETTINGS, WORDS)


def test_a_disk_that_is_full_is_an_error_and_a_part_of_a_line_no_line(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from octvideo.errors import UserError
from octvideo.json_lines import JsonLines, Words
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
lines = JsonLines(Path(sys.argv[1]), {"diary": "kind 1", "year": 2019}, Words("", "", ""))
try:
    for n in range(100):
        lines.add({"path": n})
except UserError as error:
    print(error)
"""
    file = tmp_path / "lines"
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True)
    assert done.stdout == f"can't write {file}: File too large\n", done.stderr
    there = entries_of(file)
    assert len(there) > 2 and entries_of(file, {"path": "b"}) == [*there, {"path": "b"}]
