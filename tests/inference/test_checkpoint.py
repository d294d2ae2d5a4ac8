"""Runs and checkpoints by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octvideo.errors import UserError
from octvideo.inference.checkpoint import check_run_name, find_checkpoint, find_runs, run_folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ in the current folder, with runs a, exp/one.5 and, behind a link, far."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/far").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/around").symlink_to(tmp_path / "runs")
    for number, run in enumerate(("a", "far", "exp/one.5")):
        file = tmp_path / "runs" / run / "checkpoints/last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, number))
    return Path("runs")


def test_runs_are_found_at_any_depth_and_through_links_once(runs: Path) -> None:
    assert find_runs(runs) == [Path("runs/a"), Path("runs/exp/one.5"), Path("runs/far")]
    assert find_runs("nowhere") == []


@pytest.mark.parametrize("given", ["exp/one.5", "runs/exp/one.5", "last", "runs/exp/one.5/checkpoints/last.ckpt"])
def test_a_checkpoint_by_its_run_or_its_file(given: str, runs: Path) -> None:
    assert find_checkpoint(given) == Path("runs/exp/one.5/checkpoints/last.ckpt")
    assert find_checkpoint(str(runs.absolute() / "a")) == runs.absolute() / "a/checkpoints/last.ckpt"


def test_what_is_no_run_is_left_to_whoever_reads_the_file(runs: Path) -> None:
    assert find_checkpoint("exp/two") == Path("exp/two")
    with pytest.raises(UserError, match=r"no checkpoint under .*runs/exp \(looked for checkpoints/\*.ckpt\)"):
        find_checkpoint("exp")


@pytest.mark.parametrize(
    ("name", "runs_dir", "folder"),
    [
        ("a", "runs", "runs/a"),
        ("a/b c.yaml", "runs", "runs/a/b c.yaml"),
        ("runs/a", "runs", "runs/a"),
        ("runs/a", "other/runs", "other/runs/runs/a"),
        ("/x/a", "runs", "/x/a"),
        ("~/a", "$SOMEWHERE/runs", "/home/me/a"),
        ("a", "${SOMEWHERE}/runs", "/there/runs/a"),
    ],
)
def test_the_folder_of_a_run(name: str, runs_dir: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SOMEWHERE", "/there")
    assert run_folder(name, runs_dir) == Path(folder)


def test_names_of_runs() -> None:
    for good in ("a", "exp/one", "demo_a0.25", "/x/y", "last/one", "über"):
        assert check_run_name(good) == good
    for bad in ("", "/", ".", "..", "last", "best", "a/../b", "checkpoints", "a ", "a\tb"):
        with pytest.raises(UserError, match="a run can't be called"):
            check_run_name(bad)
