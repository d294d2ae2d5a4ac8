"""`octvideo score`, `octvideo report` and `octvideo demo-data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from octvideo.data.synthetic import CLASS_NAMES
from octvideo.evaluation.scores import VideoScores

Cli = Callable[..., tuple[str, str]]


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


def test_report_of_a_demo_run(demo_run: Path, octvideo: Cli) -> None:
    scores(2, names=list(CLASS_NAMES)).save(demo_run / "scores.npz")
    out, _ = octvideo("report", demo_run)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "top-1 87.5 % 64.0 – 96.5 %" in lines
    # The demo's pairs are known without being given.
    assert any(line.startswith("opposite pairs ") for line in lines)
    assert (demo_run / "report.png").read_bytes().startswith(b"\x89PNG")
    out, _ = octvideo("report", demo_run, "--markdown", "--title", "Oct-I3D", "--output", demo_run / "p.png")
    assert "| Oct-I3D | 16 | 87.5 % (64.0–96.5) |" in out
    assert out.rstrip().endswith("![Oct-I3D](p.png)")
    assert (demo_run / "p.png").exists()


def test_report_of_a_run_that_is_not_tested_and_of_nothing(demo_run: Path, octvideo: Cli, tmp_path: Path) -> None:
    assert "demo: not tested yet" in octvideo("report", demo_run)[0]
    assert (demo_run / "report.png").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "error: no scores.npz in"), (tmp_path / "none", "error: no folder")):
        out, err = octvideo("report", folder, code=2)
        assert err.startswith(message) and not out and len(err.splitlines()) == 1
    for name, got in (("a.txt", ".txt"), ("a", "no suffix")):
        out, err = octvideo("report", demo_run, "-o", tmp_path / name, code=2)
        assert err == f"error: picture {tmp_path / name}: got {got}, expected .png, .svg, .pdf\n" and not out


def test_score_recomputes_compares_and_joins(tmp_path: Path, octvideo: Cli) -> None:
    names = ["open", "close", "wave"]
    for run_name, wrong in (("a", 9), ("b", 1)):
        (tmp_path / run_name).mkdir()
        scores(wrong, names=names).save(tmp_path / run_name / "scores.npz")
    out, _ = octvideo("score", tmp_path / "a", tmp_path / "b", "--pairs", "open,close")
    assert "b against a: +50.0 points top-1; 8 videos won, 0 lost, McNemar p = 0.0078" in out
    assert "opposite pairs" in out

    for part, (first, wrong) in enumerate([(0, 4), (4, 0)]):
        scores(wrong, names=names, first=first, count=4).save(tmp_path / f"scores_{part}.npz")
    out, _ = octvideo("score", tmp_path, "--join")
    assert "50.0 %" in out and "8 videos, 3 classes" in out


def test_score_errors_are_one_line(tmp_path: Path, octvideo: Cli) -> None:
    scores(0, names=["a", "b"]).save(tmp_path / "scores.npz")
    for args, message in (
        ([tmp_path / "none"], "error: no file or folder"),
        ([tmp_path, "--pairs", "a"], "error: --pairs: got 'a', expected two class names as A,B"),
        ([tmp_path, "--pairs", "a,c"], "error: pairs: no class 'c' among 2: a, b"),
    ):
        _, err = octvideo("score", *args, code=2)
        assert err.startswith(message) and len(err.splitlines()) == 1


def test_demo_data(tmp_path: Path, octvideo: Cli) -> None:
    words = ["--output", tmp_path / "demo", "--videos_per_class", 1, "--test_videos_per_class", 1]
    assert "16 videos of 8 classes, 16 of them written now" in octvideo("demo-data", *words)[0]
    assert "0 of them written now" in octvideo("demo-data", *words)[0]
    _, err = octvideo("demo-data", *words, "--seed", 1, code=2)
    assert "seed is 0, asked for 1" in err


def test_a_run_is_found_by_its_name(tmp_path: Path, octvideo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    scores(1, names=["a", "b"]).save("runs/mine/scores.npz")
    assert "93.8 %" in octvideo("score", "mine")[0]
    assert "93.8 %" in octvideo("report", "mine")[0] and Path("runs/mine/report.png").exists()
    _, err = octvideo("report", "yours", code=2)
    assert err.startswith("error: no folder yours, and no run of that name in runs/")
