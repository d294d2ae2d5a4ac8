"""tools/benchmark_cluster.py: what is counted of a command that writes results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.cluster import Course, course_of, run_watched, table
from octvideo.errors import UserError

_WRITES = """
import sys, time
with open(sys.argv[1], "w") as file:
    for line in range(1 + int(sys.argv[2])):
        print(line, file=file, flush=True)
        time.sleep(0.1)
sys.exit(int(sys.argv[3]))
"""


def test_start_and_end_are_told_apart_from_the_rate() -> None:
    course = course_of([(4.0, 3), (5.0, 9), (7.0, 15)], 8.5)
    assert course == Course(4.0, 7.0, 8.5, 12) and course.rate == 4.0
    with pytest.raises(UserError, match="3 results came at once: give more videos"):
        course_of([(4.0, 3)], 8.5)


def test_a_command_is_watched_from_its_first_line(tmp_path: Path) -> None:
    words, out = [sys.executable, "-c", _WRITES, str(tmp_path / "out")], tmp_path / "out"
    out.write_text("of before\n" * 50)
    course = run_watched([*words, "20", "1"], out)
    assert 0 < course.between < 20 and 0 < course.first_s < course.last_s < course.whole_s
    with pytest.raises(UserError, match=r"exit code 7 of .*"):
        run_watched([*words, "2", "7"], out)


def test_rates_are_compared_within_a_round() -> None:
    rounds = [
        {"plain": Course(1, 11, 12, 100), "ray": Course(5, 15, 18, 90)},
        {"plain": Course(1, 21, 22, 100), "ray": Course(5, 25, 28, 110)},
        {"plain": Course(1, 11, 12, 100), "ray": Course(5, 15, 18, 100)},
    ]
    assert table(rounds) == [
        ("plain", "1.0", "1.0", "10.0", "1.00 (1.00–1.00)"),
        ("ray", "5.0", "3.0", "9.0", "1.00 (0.90–1.10)"),
    ]
