"""Files of scores: what is written comes back, and what is something else is refused by name."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from octvideo.errors import UserError
from octvideo.evaluation.report import figures
from octvideo.evaluation.scores import VideoScores, find_scores


def some(n: int = 4, k: int = 3, *, start: int = 0) -> VideoScores:
    rng = np.random.default_rng(n + start)
    scores = rng.dirichlet(np.ones(k), n)
    names = [f"clip {start + i} é.mp4" for i in range(n)]
    return VideoScores(names, np.arange(n) % k, scores, [f"class {c}, ü" for c in range(k)])


@pytest.mark.parametrize("n", [0, 4])
def test_saved_scores_come_back_without_pickle(n: int, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    scores = some(n)
    scores.save(path)
    back = VideoScores.load(path)
    assert (back.paths, back.class_names) == (scores.paths, scores.class_names)
    np.testing.assert_array_equal(back.labels, scores.labels)
    np.testing.assert_array_equal(back.scores, scores.scores)
    assert back.scores.dtype == np.float32 and back.labels.dtype == np.int64 and back.scores.shape == (n, 3)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_undecodable_file_names_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"clip\xff.mp4")
    scores = VideoScores([name], np.array([0]), np.ones((1, 1)), ["a"])
    scores.save(tmp_path / "s.npz")
    assert VideoScores.load(tmp_path / "s.npz").paths == [name]
    scores.save_csv(tmp_path / "p.csv")
    assert b"clip\xff.mp4,a,yes" in (tmp_path / "p.csv").read_bytes()


def test_concat_keeps_every_video_in_order() -> None:
    a, b = some(3), some(2, start=3)
    both = VideoScores.concat([b, a, b])
    assert both.paths == b.paths + a.paths + b.paths
    np.testing.assert_array_equal(both.scores, np.concatenate([b.scores, a.scores, b.scores]))
    with pytest.raises(UserError, match=r"different classes: 3 \(class 0, ü, .*\) and 2 \("):
        VideoScores.concat([a, some(2, k=2)])
    with pytest.raises(UserError, match="no scores to join"):
        VideoScores.concat([])


def test_known_drops_videos_without_a_label() -> None:
    scores = VideoScores(["a", "b", "c"], np.array([1, -1, 0]), np.eye(3, 2), ["x", "y"])
    assert scores.known().paths == ["a", "c"]
    np.testing.assert_array_equal(scores.known().scores, np.eye(3, 2)[[0, 2]])


def test_csv_names_the_best_classes_in_order(tmp_path: Path) -> None:
    scores = VideoScores(
        ["a b.mp4", "c,d.mp4", "e.mp4"],
        np.array([2, 0, -1]),
        np.array([[0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.5, 0.5, 0.0]]),
        ["run, fast", "jump", "fall"],
    )
    scores.save_csv(tmp_path / "p.csv", top=2)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "right", "class1", "score1", "class2", "score2"]
    assert rows[1] == ["a b.mp4", "fall", "yes", "fall", "0.7000", "jump", "0.2000"]
    assert rows[2] == ["c,d.mp4", "run, fast", "no", "jump", "0.4000", "run, fast", "0.3000"]
    assert rows[3] == ["e.mp4", "", "", "run, fast", "0.5000", "jump", "0.5000"]


def test_figures_and_files_agree_on_scores_that_tie_or_are_not_finite(tmp_path: Path) -> None:
    """A video with a NaN is wrong everywhere, and of equal scores the first class is the best."""
    nan = float("nan")
    scores = VideoScores(
        ["nan.mp4", "tie.mp4", "first.mp4"],
        np.array([0, 1, 0]),
        np.array([[0.9, nan, 0.1], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]),
        ["a", "b", "c"],
    )
    scores.save_csv(tmp_path / "p.csv", top=2)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert [row[2] for row in csv.reader(file)] == ["right", "no", "no", "yes"]
    assert scores.hits().tolist() == [False, False, True] and scores.hits(2).tolist() == [False, True, True]
    top1, top5, _ = figures(scores)
    assert (top1.hits, top5.hits, top1.total) == (1, 2, 3)


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        ([0, 1, 0], (2, 2), r"got labels \(3,\) and scores \(2, 2\), expected \(2,\) and \(2, 2\): 2 paths"),
        ([0, 1], (2, 3), r"scores \(2, 3\), expected \(2,\) and \(2, 2\): 2 paths, 2 class names"),
        ([0, 2], (2, 2), r"labels: got 0 to 2, expected -1 \(unknown\) to 1"),
    ],
)
def test_parts_that_do_not_fit(labels: list[int], shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoScores(["a", "b"], np.array(labels), np.zeros(shape), ["x", "y"])


def test_loading_something_else_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no scores at .*none\.npz: octvideo test writes scores\.npz"):
        VideoScores.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    whole = tmp_path / "whole.npz"
    some().save(whole)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:200])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "other.npz", "cut.npz", "array.npy"):
        with pytest.raises(UserError, match=f"{name} holds no octvideo scores"):
            VideoScores.load(tmp_path / name)
    content = dict(np.load(whole)) | {"format": np.array(99)}
    np.savez(whole, **content)
    with pytest.raises(UserError, match="got format 99, expected 2 or less: update octvideo"):
        VideoScores.load(whole)


def test_scores_of_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no scores\.npz in .*: test the run first"):
        find_scores(tmp_path)
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        find_scores(tmp_path / "nowhere")
    for name in ("scores_val.npz", "scores.npz", "scores_a.npz"):
        (tmp_path / name).touch()
    assert [p.name for p in find_scores(tmp_path)] == ["scores.npz", "scores_a.npz", "scores_val.npz"]
    assert find_scores(tmp_path / "scores_a.npz") == [tmp_path / "scores_a.npz"]
