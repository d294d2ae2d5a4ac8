"""tools/score.py, tools/report.py and tools/make_demo_data.py as the user runs them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from octvideo.data.synthetic import CLASS_NAMES
from octvideo.evaluation import VideoScores

Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a tool as __main__, in this process: torch and matplotlib are imported once."""

    def run_tool(tool: str, *args: object) -> Result:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repo / "tools" / tool), run_name="__main__")
        said = capsys.readouterr()
        return Result(int(ended.value.code or 0), said.out, said.err)

    return run_tool


def scores(wrong: int, *, names: list[str], first: int = 0, count: int = 16) -> VideoScores:
    """Videos `first` and on of a test; the first `wrong` of these are taken for the next class."""
    index = np.arange(first, first + count)
    labels = index % len(names)
    predicted = np.where(np.arange(count) < wrong, (labels + 1) % len(names), labels)
    values = np.full((count, len(names)), 0.1 / (len(names) - 1))
    values[np.arange(count), predicted] = 0.9
    return VideoScores([f"v{i}.mp4" for i in index], labels, values, names)


@pytest.fixture
def demo_run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    logger = CSVLogger(folder.parent, name="demo", version="")
    for epoch in range(2):
        logger.log_metrics({"train/loss": 1.0, "train/top1": 0.5, "lr": 0.1, "epoch": epoch}, step=epoch)
        logger.log_metrics({"val/loss": 1.0, "val/top1": 0.5, "epoch": epoch}, step=epoch)
    logger.save()
    return folder


def test_report_of_a_demo_run(demo_run: Path, run: Run) -> None:
    scores(2, names=list(CLASS_NAMES)).save(demo_run / "scores.npz")
    result = run("report.py", demo_run)
    assert result.returncode == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "top-1 87.5 % 64.0 – 96.5 %" in lines
    # The demo's pairs are known without being given.
    assert any(line.startswith("opposite pairs ") for line in lines)
    assert (demo_run / "report.png").read_bytes().startswith(b"\x89PNG")
    result = run("report.py", demo_run, "--markdown", "--title", "Oct-I3D", "--out", demo_run / "p.png")
    assert "| Oct-I3D | 16 | 87.5 % (64.0–96.5) |" in result.stdout
    assert result.stdout.rstrip().endswith("![Oct-I3D](p.png)")
    assert (demo_run / "p.png").exists()


def test_report_of_a_run_that_is_not_tested_and_of_nothing(demo_run: Path, run: Run, tmp_path: Path) -> None:
    result = run("report.py", demo_run)
    assert result.returncode == 0 and "demo: not tested yet" in result.stdout
    assert (demo_run / "report.png").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "error: no scores.npz in"), (tmp_path / "none", "error: no folder")):
        result = run("report.py", folder)
        assert result.returncode == 2 and result.stderr.startswith(message) and not result.stdout
        assert len(result.stderr.splitlines()) == 1


def test_score_recomputes_compares_and_joins(tmp_path: Path, run: Run) -> None:
    names = ["open", "close", "wave"]
    for run_name, wrong in (("a", 9), ("b", 1)):
        (tmp_path / run_name).mkdir()
        scores(wrong, names=names).save(tmp_path / run_name / "scores.npz")
    result = run("score.py", tmp_path / "a", tmp_path / "b", "--pairs", "open,close")
    assert result.returncode == 0, result.stderr
    assert "b against a: +50.0 points top-1; 8 videos won, 0 lost, McNemar p = 0.0078" in result.stdout
    assert "opposite pairs" in result.stdout

    for part, (first, wrong) in enumerate([(0, 4), (4, 0)]):
        scores(wrong, names=names, first=first, count=4).save(tmp_path / f"scores_{part}.npz")
    joined = run("score.py", tmp_path, "--join")
    assert "50.0 %" in joined.stdout and "8 videos, 3 classes" in joined.stdout


def test_score_errors_are_one_line(tmp_path: Path, run: Run) -> None:
    scores(0, names=["a", "b"]).save(tmp_path / "scores.npz")
    for args, message in (
        ([tmp_path / "none"], "error: no file or folder"),
        ([tmp_path, "--pairs", "a"], "error: --pairs: got 'a', expected two class names as A,B"),
        ([tmp_path, "--pairs", "a,c"], "error: pairs: no class 'c' among 2: a, b"),
    ):
        result = run("score.py", *args)
        assert result.returncode == 2 and result.stderr.startswith(message), result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_make_demo_data(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "demo"
    words = ["--out", out, "--videos-per-class", 1, "--test-videos-per-class", 1]
    first = run("make_demo_data.py", *words)
    assert first.returncode == 0, first.stderr
    assert "16 videos of 8 classes, 16 of them written now" in first.stdout
    assert "0 of them written now" in run("make_demo_data.py", *words).stdout
    other = run("make_demo_data.py", *words, "--seed", 1)
    assert other.returncode == 2 and "seed is 0, asked for 1" in other.stderr


def test_tools_run_from_any_folder_of_a_checkout_not_installed(tmp_path: Path, repo: Path) -> None:
    scores(0, names=["a", "b"]).save(tmp_path / "scores.npz")
    words = [sys.executable, str(repo / "tools" / "score.py"), "scores.npz", "--markdown"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "| 16 | 100.0 % (80.6–100.0) |" in result.stdout
