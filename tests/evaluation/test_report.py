"""Figures, tables and pictures from scores and logged metrics."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from matplotlib.image import imread

from octvideo.errors import UserError
from octvideo.evaluation.detail_pictures import draw_details, draw_precision_recall
from octvideo.evaluation.metrics import mcnemar_p
from octvideo.evaluation.pictures import draw_report, read_curves
from octvideo.evaluation.report import (
    compare_top1,
    comparison_table,
    confusion_matrix,
    figures,
    markdown_table,
    metrics_table,
    pairs_from,
    run_names,
)
from octvideo.evaluation.scores import VideoScores

NAMES = ["open", "close", "wave"]
PAIRS = [("open", "close")]


def predictions(labels: list[int], predicted: list[int], *, k: int = 3) -> VideoScores:
    """Scores of .8 for what is predicted."""
    scores = np.full((len(labels), k), 0.2 / (k - 1))
    scores[np.arange(len(labels)), predicted] = 0.8
    names = NAMES if k == 3 else [f"class {i}" for i in range(k)]
    return VideoScores([f"{i}.mp4" for i in range(len(labels))], np.array(labels), scores, names)


def a_run() -> VideoScores:
    return predictions([0, 0, 0, 1, 1, 2, 2, -1], [0, 0, 1, 1, 2, 2, 2, 0])


def test_figures_by_hand() -> None:
    top1, top5, mean_class, pairs = figures(a_run(), pairs=PAIRS)
    assert (top1.hits, top1.total, top1.value) == (5, 7, 5 / 7)
    assert top5.value == 1.0
    assert mean_class.value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3) and mean_class.interval is None
    # The fifth video went to "wave"; open and close have equal scores there, and the first class wins.
    assert (pairs.hits, pairs.total) == (3, 5)
    with pytest.raises(UserError, match="no class 'shut' among 3: open, close, wave"):
        figures(a_run(), pairs=[("open", "shut")])
    with pytest.raises(UserError, match="no video has a known label"):
        figures(predictions([-1], [0]))


def test_confusion_matrix_has_truth_in_rows() -> None:
    np.testing.assert_array_equal(confusion_matrix(a_run()), [[2, 1, 0], [0, 1, 1], [0, 0, 2]])
    assert confusion_matrix(predictions([-1], [0])).sum() == 0


def test_metrics_table_is_plain_text() -> None:
    text = metrics_table(a_run(), pairs=PAIRS, title="a run")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "top-1 71.4 % 35.9 – 91.8 %" in lines
    assert "mean class 72.2 %" in lines
    assert lines[0] == "a run" and lines[-1] == "7 videos, 3 classes; 1 more without a label"
    assert "\x1b" not in text
    assert metrics_table(predictions([-1, -1], [0, 1])).startswith("2 videos scored; no label is known")


def test_markdown_has_one_row_per_run() -> None:
    lines = markdown_table({"a": a_run(), "b": a_run()}, pairs=PAIRS).splitlines()
    assert lines[0] == "| run | videos | top-1 | top-5 | mean class | opposite pairs |"
    assert lines[2].startswith("| a | 7 | 71.4 % (35.9–91.8) | 100.0 % ")
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_runs_on_the_same_videos_are_compared_video_by_video() -> None:
    labels = [0] * 10
    first = predictions(labels, [0] * 4 + [1] * 6)
    second = predictions(labels, [0] * 3 + [1] + [0] * 5 + [1])
    assert compare_top1(second, first) == "+40.0 points top-1; 5 videos won, 1 lost, McNemar p = 0.22"
    other_order = VideoScores(first.paths[::-1], first.labels, first.scores[::-1], first.class_names)
    assert compare_top1(other_order, first).startswith("+0.0 points top-1; 0 videos won, 0 lost")
    assert compare_top1(predictions([0], [0]), first).startswith("not the same videos")
    text = comparison_table({"I3D": first, "Oct-I3D": second})
    assert "Oct-I3D against I3D: +40.0 points" in text
    assert "40.0 %   16.8 – 68.7 %" in text


def test_mcnemar_by_enumeration() -> None:
    for a, b in [(0, 0), (1, 5), (7, 2), (4, 4)]:
        n = a + b
        # Every way in which n videos may fall to either run, as likely as any other.
        sides = [bin(i).count("1") for i in range(2**n)]
        extreme = [abs(2 * s - n) >= abs(a - b) for s in sides]
        assert mcnemar_p(a, b) == pytest.approx(np.mean(extreme))


def test_pairs_given_or_known() -> None:
    known = (("a", "b"), ("c", "d"))
    assert pairs_from(None, known=known, class_names=["d", "c", "b", "a", "e"]) == known
    assert pairs_from(None, known=known, class_names=["a", "b", "c"]) == ()
    assert pairs_from(["x, y", "p,q"], known=known, class_names=[]) == [("x", "y"), ("p", "q")]
    for wrong in ("x", "x,", "x,y,z"):
        with pytest.raises(UserError, match=f"--pairs: got '{wrong}', expected two class names as A,B"):
            pairs_from([wrong], known=(), class_names=[])


def test_run_names_are_as_short_as_they_can_be() -> None:
    files = ["runs/a/scores.npz", "runs/a/scores_val.npz", "other/b/scores.npz"]
    assert run_names([Path(f) for f in files]) == ["a", "scores_val", "b"]
    files = ["runs/a/x/scores.npz", "runs/b/x/scores.npz"]
    assert run_names([Path(f) for f in files]) == ["a/x", "b/x"]
    with pytest.raises(UserError, match="given twice"):
        run_names([Path("a/scores.npz"), Path("a/../a/scores.npz")])


@pytest.fixture
def metrics_csv(tmp_path: Path) -> Path:
    """Written by Lightning's own logger, as a training of 3 epochs of 4 steps."""
    logger = CSVLogger(tmp_path, name="run", version="")
    for epoch in range(3):
        for step in (4 * epoch + 1, 4 * epoch + 3):
            logger.log_metrics({"lr": 0.1 / (step + 1), "train/loss_step": 2.0, "epoch": epoch}, step=step)
        last = 4 * epoch + 3
        logger.log_metrics({"val/loss": 1.5 - epoch / 4, "val/top1": epoch / 2, "epoch": epoch}, step=last)
        logger.log_metrics({"train/loss": 1.0, "train/top1": 0.5, "epoch": epoch}, step=last)
    logger.save()
    return tmp_path / "run" / "metrics.csv"


def test_curves_of_lightnings_csv(metrics_csv: Path) -> None:
    curves = read_curves(metrics_csv)
    assert set(curves) == {"lr", "train/loss", "train/loss_step", "train/top1", "val/loss", "val/top1"}
    assert curves["val/top1"].epochs == [1.0, 2.0, 3.0] and curves["val/top1"].values == [0.0, 0.5, 1.0]
    assert curves["lr"].epochs == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert curves["lr"].values == pytest.approx([0.1 / s for s in (2, 4, 6, 8, 10, 12)])


def test_curves_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics at .*metrics\.csv \(No such file"):
        read_curves(tmp_path / "metrics.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no rows with epoch and step"):
        read_curves(tmp_path / "other.csv")


@pytest.mark.filterwarnings("error")
def test_names_in_the_picture_are_only_text(tmp_path: Path) -> None:
    scores, out = predictions([0, 1, 2], [2, 0, 1]), tmp_path / "report.svg"
    scores.class_names[:] = [r"a $\foo$ b", "long" * 60, "打开\U0010ff00"]
    draw_report(out, scores=scores, title=r"run $\q$" + "x" * 300)
    text = out.read_text(encoding="utf-8")
    # The squares of the matrix are as large as ever.
    plain = tmp_path / "plain.svg"
    draw_report(plain, scores=predictions([0, 1, 2], [2, 0, 1]), title="run")
    sizes = [re.search(r'<image [^>]*?width="([\d.]+)"', one)[1] for one in (text, plain.read_text(encoding="utf-8"))]
    assert float(sizes[0]) > 0.7 * float(sizes[1])


@pytest.mark.filterwarnings("error")
def test_names_beside_the_curves_are_only_text(tmp_path: Path) -> None:
    scores, out = predictions([0, 1, 2], [2, 0, 1]), tmp_path / "details.svg"
    scores.class_names[:] = [r"_a $\foo$ b", "long" * 60, "打开\U0010ff00"]
    draw_details(out, scores, title=r"run $\q$" + "x" * 300)
    assert out.read_text(encoding="utf-8").startswith("<?xml")
    axes = Figure().subplots()
    draw_precision_recall(axes, scores)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[0].startswith(r"_a $\foo$ b  ") and names[2].startswith("class 2  ")
    assert len(names) == 3 and names[1].startswith("long") and "…  " in names[1]


def test_picture_of_both_or_either(metrics_csv: Path, tmp_path: Path) -> None:
    curves = read_curves(metrics_csv)
    out = tmp_path / "report.png"
    draw_report(out, curves=curves, scores=a_run(), pairs=PAIRS, title="both")
    both = imread(out)
    draw_report(out, curves=curves)
    one = imread(out)
    assert both.shape[1] > one.shape[1] > 500 and one[..., :3].min() < 0.3
    # Only the scores differ, so only the right half does: what is drawn there is theirs.
    draw_report(out, curves=curves, scores=predictions([0, 1, 2], [2, 0, 1]), pairs=PAIRS, title="both")
    differs = (imread(out) != both).any((0, 2))
    assert differs[len(differs) // 2 :].sum() > 100
    for k in (30, 50):
        draw_report(out, scores=predictions([0, 1], [0, 1], k=k))
        assert imread(out).std() > 0.01
    with pytest.raises(UserError, match="nothing to draw"):
        draw_report(out)
    with pytest.raises(UserError, match=r"no train/loss, train/top1 or lr among the logged val/x"):
        draw_report(out, curves={"val/x": curves["lr"]})


def test_a_metric_never_counted_is_a_dash() -> None:
    only_waves = predictions([2, 2], [2, 2])
    pairs = figures(only_waves, pairs=PAIRS)[-1]
    assert math.isnan(pairs.value) and pairs.total == 0
    text = metrics_table(only_waves, pairs=PAIRS)
    assert "opposite pairs         –" in text and "nan" not in text
