"""A run's folder: new runs never mix with old ones, and the curves survive an interruption."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from octvideo.errors import UserError
from octvideo.training.lightning_parts import RunCSVLogger
from octvideo.training.run_folder import RunFolder


def a_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    folder.last.touch()
    (path / "predict").mkdir()
    for name in ("best.ckpt", ".last.ckpt.part"):
        (folder.checkpoints / name).touch()
    for name in ("scores.npz", "predict/scores.npz", "metrics_test.json", "config_test.yaml"):
        (path / name).touch()
    (path / "notes.txt").write_text("mine")
    return folder


def rows(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics_csv.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_run_does_not_start_over_an_old_one(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "demo")
    with pytest.raises(UserError) as caught:
        folder.start(overwrite=False)
    for way_out in ("already holds a run", "--resume", "--name OTHER", "--overwrite"):
        assert way_out in str(caught.value)
    assert folder.last.exists()


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "demo")
    folder.start(overwrite=True)
    assert [path.name for path in folder.path.rglob("*") if path.is_file()] == ["notes.txt"]
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_a_missing_checkpoint_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no last checkpoint: looked for .*last\.ckpt; train first"):
        RunFolder(tmp_path).best_or_last()


def test_metrics_go_on_after_an_interruption(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo")
    first = RunCSVLogger(folder)
    for step in range(4):
        first.log_metrics({"loss": float(step)}, step=step)
    # The checkpoint was taken after 2 steps: steps 2 and 3 will be trained again.
    folder.forget_after(2)
    second = RunCSVLogger(folder)
    second.log_metrics({"loss": 20.0, "new": 1.0}, step=2)
    assert [(row["step"], row["loss"]) for row in rows(folder)] == [("0", "0.0"), ("1", "1.0"), ("2", "20.0")]
    assert [row["new"] for row in rows(folder)] == ["", "", "1.0"]


def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_csv.write_text("epoch,step,loss\n0,1,3.5\n0,2,3.4\n0")
    folder.forget_after(9)
    assert [row["step"] for row in rows(folder)] == ["1", "2"]
