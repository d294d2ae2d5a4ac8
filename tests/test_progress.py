"""Long work says how far it is: a line now and then where there is no terminal, a bar on one."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import octvideo.progress
from octvideo.progress import Progress, track


class Heard(io.StringIO):
    """What is written, and an event for each line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if "\n" in text:
            self.line.set()
        return written


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard = Heard()
    monkeypatch.setattr(octvideo.progress, "Console", lambda **_: Console(file=heard, width=200))
    monkeypatch.setattr(octvideo.progress, "LINE_EVERY_S", 0.01)
    return heard


def next_line(heard: Heard) -> str:
    """The line that is written after now."""
    heard.line.clear()
    heard.truncate(0)
    assert heard.line.wait(10)
    return heard.getvalue().strip("\0").splitlines()[0]


def test_a_line_now_and_then_without_a_terminal(heard: Heard) -> None:
    """Also while nothing is done: a step may take minutes."""
    with Progress("checking", 1200) as progress:
        assert next_line(heard) == "checking: 0 of 1,200 (0:00:00)"
        progress.update(3, said="a[b].mp4 20%")
        next_line(heard)
        assert next_line(heard) == "checking: 3 of 1,200, a[b].mp4 20% (0:00:00)"
        progress.begin("building")
        next_line(heard)
        assert re.fullmatch(r"building(: )? \(0:00:0\d\)", next_line(heard))
    written = heard.getvalue()
    assert not heard.line.clear() and not heard.line.wait(0.05) and heard.getvalue() == written


def test_bytes(heard: Heard) -> None:
    with Progress("a.pth", in_bytes=True) as progress:
        progress.update(1_500_000, total=3_000_000)
        next_line(heard)
        assert re.fullmatch(r"a\.pth: 1\.5 MB of 3\.0 MB, \d+\.\d MB/s \(0:00:0\d\)", next_line(heard))


def test_items_are_counted(heard: Heard) -> None:
    lines = []
    for item in track("abc", "reading"):
        next_line(heard)
        lines.append(next_line(heard).partition(" (")[0] + f" {item}")
    assert lines == ["reading: 0 of 3 a", "reading: 1 of 3 b", "reading: 2 of 3 c"]


def test_short_work_says_nothing_and_a_terminal_shows_a_bar(repo: Path) -> None:
    program = "import octvideo.progress as p; print(*p.track('ab', 'reading'))"
    command = [sys.executable, "-c", program]
    quiet = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("a b\n", "")
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    shown = subprocess.run(command, cwd=repo, stdout=subprocess.PIPE, stderr=theirs, env=env, check=True)
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # Linux' end of a terminal that nobody writes to
        while part := os.read(ours, 100_000):
            drawn += part
    assert shown.stdout == b"a b\n" and b"reading: 2 of 2" in drawn
