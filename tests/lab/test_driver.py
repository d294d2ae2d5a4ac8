"""tools/simulate_driver.py: the command runs for real, beside a stand-in for Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.driver import StandIn, main, make_files, names_of, run_driver, table
from octvideo.cluster.pool import RayPool
from octvideo.errors import UserError


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # put back after the test, whatever took its place


def test_names_are_the_files_in_no_order(tmp_path: Path) -> None:
    names = list(names_of(1200, str(tmp_path)))
    make_files(tmp_path, 1200)
    assert sorted(names) == sorted(map(str, tmp_path.glob("*/*.mp4"))) != names
    assert len({Path(name).stat().st_size for name in names}) > 1000


def test_the_command_writes_each_result_once_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names_of(300, str(tmp_path))))
    make_files(tmp_path, 1)
    words = [f"@{tmp_path / 'names.txt'}", "--output", str(out)]
    stopped = run_driver(words, 3, True)
    assert not out.exists() and 0 < stopped["begun"] <= stopped["ended"]
    found = run_driver(words, 3, False)
    assert found["begun"] < found["ended"] and found["begun_bytes"] <= found["ended_bytes"]
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert sorted(line["path"] for line in lines) == sorted(names_of(300, str(tmp_path)))
    assert all(len(line["top"]) == 5 for line in lines)
    before = out.read_bytes()
    run_driver(words, 3, False)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"exit code 2 of octvideo infer @nothing\.txt"):
        run_driver(["@nothing.txt"], 1, False)


class Echo:
    def begin(self) -> None:
        return None

    def work(self, items: Sequence[Any]) -> Iterator[Any]:
        yield from items


def test_a_pool_counts_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandIn(5, is_stopped=False))
    with RayPool[str](Echo(), batch=4) as pool:
        pool.begin()
        assert pool.num_ready == 1
        found = [(name, result.path, pool.num_ready) for name, result in pool.run(map(str, range(200)), 200)]
        assert sorted(int(name) for name, _, _ in found) == list(range(200))
        assert all(name == path for name, path, _ in found) and found[-1][2] == 5
    assert pool.num_ready == 0


def test_what_was_not_measured_is_computed_from_the_longest() -> None:
    rows = {10: {"read": 1.0, "read_bytes": 2e9, "write": 4.0}, 100: {"read": 12.0, "read_bytes": 3e9}}
    header, cells = table(rows, computed=[1000])
    assert header == ["names", "list read, s", "GB", "results written, s"]
    assert cells == [
        ["10", "1.0", "2.00", "4.0"],
        ["100", "12.0", "3.00", "≈ 40.0"],
        ["1,000", "≈ 120.0", "≈ 30.00", "≈ 400.0"],
    ]


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_program_measures_in_fresh_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--names", "2000", "--files", "--folder", str(tmp_path), "--computed", "4000", "--markdown"]
    assert main(words) == 0
    header, _, measured, computed = capsys.readouterr().out.splitlines()
    assert header.count(" GB |") == 5 and measured.startswith("| 2,000 | ") and computed.startswith("| 4,000 | ≈ ")
    assert list(tmp_path.iterdir()) == []
