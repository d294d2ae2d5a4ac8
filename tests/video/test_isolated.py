"""What goes wrong in a process that can be killed becomes a result, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octvideo.video.isolated import IsolatedPool, Outcome
from tests.video.isolated_work import act, broken

MB = 2**20


@pytest.fixture(scope="module")
def pool() -> Iterator[IsolatedPool[Any]]:
    """Whatever else the machine does, work is in time."""
    with IsolatedPool[Any](act, num_processes=2, timeout_s=120, memory_bytes=256 * MB) as pool:
        yield pool


@pytest.fixture
def hasty() -> Iterator[IsolatedPool[Any]]:
    with IsolatedPool[Any](act, num_processes=2, timeout_s=1, memory_bytes=256 * MB) as pool:
        yield pool


def one(pool: IsolatedPool[Any], *item: Any) -> Outcome:
    ((given, outcome),) = pool.run([item])
    assert given == item
    return outcome


def test_each_way_to_end_is_told_and_the_next_item_is_none_the_worse(pool: IsolatedPool[Any]) -> None:
    expected = {
        "crash": ("crashed", "crashed (signal 11, SIGSEGV)"),
        "exit": ("crashed", "crashed (exit code 3)"),
        "raise": ("raised", "ValueError: two lines"),
        "full": ("disk full", "No space left on device: a.mp4"),
        "too large": ("out of memory", "out of memory: it takes more than 0.25 GiB"),
        "grow": ("out of memory", "out of memory: it takes more than 0.25 GiB"),
    }
    items = [item for kind in expected for item in ((kind,), ("pid",))]
    outcomes = list(pool.run(items))
    assert sorted(item[0] for item, _ in outcomes) == sorted(item[0] for item in items)
    assert all(outcome.ending == "returned" for item, outcome in outcomes if item == ("pid",))
    told = {item[0]: (outcome.ending, outcome.reason) for item, outcome in outcomes if item != ("pid",)}
    assert told == expected
    assert "raise ValueError" in one(pool, "raise").details


def test_no_process_sees_a_ctrl_c_even_while_it_imports(pool: IsolatedPool[Any]) -> None:
    assert one(pool, "blocked").value == [signal.SIGINT]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # we do


def test_what_takes_too_long_is_told(hasty: IsolatedPool[Any], tmp_path: Path) -> None:
    items: list[Any] = [("sleep", 600), ("hang", tmp_path / "pid")]
    told = {item: (outcome.ending, outcome.reason) for item, outcome in hasty.run(items)}
    assert told == dict.fromkeys(items, ("timeout", "timeout: no sign of life for 1 s"))


def test_processes_are_used_again(pool: IsolatedPool[Any]) -> None:
    before = pool.num_started
    pids = {outcome.value for _, outcome in pool.run([("pid",)] * 50)}
    assert len(pids) <= 2 and pool.num_started <= before + 2 and os.getpid() not in pids


def test_signs_of_life_give_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 80 s with each sign."""
    now, signs = 0.0, 0

    def tell(*_: object) -> None:
        nonlocal now, signs
        now, signs = now + 80, signs + 1

    monkeypatch.setattr("octvideo.video.isolated.time", SimpleNamespace(monotonic=lambda: now))
    with IsolatedPool[Any](act, num_processes=1, timeout_s=120, memory_bytes=256 * MB) as pool:
        ((_, outcome),) = pool.run([("alive", 4)], tell)
    # The first is that of its start. Without more time, one of the others would have come after the end.
    assert outcome.value == "alive" and signs == 5


def test_the_alarm_clock_of_a_process_means_that_it_took_too_long(pool: IsolatedPool[Any]) -> None:
    """It rings where the parent has no time to look."""
    outcome = one(pool, "ring")
    assert (outcome.ending, outcome.reason) == ("timeout", "timeout: no sign of life for 120 s")


def test_what_an_item_leaves_behind_is_not_counted_as_anothers(pool: IsolatedPool[Any]) -> None:
    swollen = one(pool, "hold", 160).value
    assert all(outcome.value != swollen for _, outcome in pool.run([("hold", 120)] * 2))
    busy = one(pool, "leave a thread").value
    assert one(pool, "pid").value != busy


def test_items_are_taken_as_processes_become_free(pool: IsolatedPool[Any]) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[str]]:
        for n in range(1000):
            taken.append(n)
            yield ("pid",)

    for done, _ in enumerate(pool.run(items()), 1):
        assert len(taken) <= done + 2


def test_leaving_early_leaves_no_answer_for_the_next(pool: IsolatedPool[Any]) -> None:
    for item, _ in pool.run([("sleep", 0.2), ("pid",), ("sleep", 60)]):
        assert item != ("sleep", 60)
        break
    assert one(pool, "raise").ending == "raised"


SCRIPT = """
import sys
from pathlib import Path
from octvideo.video.isolated import IsolatedPool
from tests.video.isolated_work import act
if __name__ == "__main__":
    with IsolatedPool(act, num_processes=2, timeout_s=0.5, memory_bytes=2**30) as pool:
        for item, outcome in pool.run([("pid",), ("hang", Path(sys.argv[1]))]):
            print(outcome.value, flush=True)
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path, repo: Path) -> None:
    """One is idle, one hangs in native code that lets no thread run: the alarm clock ends that."""
    (tmp_path / "parent.py").write_text(textwrap.dedent(SCRIPT))
    env = os.environ | {"PYTHONPATH": str(repo)}
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "pid")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=repo) as parent:
        assert parent.stdout is not None
        idle = int(parent.stdout.readline())
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        hanging = int((tmp_path / "pid").read_text())
        parent.send_signal(signal.SIGKILL)
    for pid in (idle, hanging):
        while not gone(pid):  # up to the test's own limit
            time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Nobody may collect an orphan in a container.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except FileNotFoundError:  # macOS has no such file; or it has just ended
        return False


def test_a_process_that_cannot_start_is_an_error_not_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with IsolatedPool[int](broken, num_processes=1, timeout_s=1, memory_bytes=MB) as pool:
        monkeypatch.setattr("octvideo.video.isolated._serve", broken)  # takes two arguments, gets four
        with pytest.raises(RuntimeError, match="a process for decoding can't start"):
            next(pool.run([1]))


@pytest.mark.slow
def test_a_folder_for_temporary_files_with_a_long_path(tmp_path: Path, repo: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    script = """
from octvideo.video.isolated import IsolatedPool
from tests.video.isolated_work import act
if __name__ == "__main__":
    with IsolatedPool(act, num_processes=1, timeout_s=60, memory_bytes=2**28) as pool:
        print([outcome.ending for _, outcome in pool.run([("return", 1)])])
"""
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(repo)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "['returned']\n", done.stderr
