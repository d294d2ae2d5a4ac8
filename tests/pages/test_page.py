"""Pages as files: what names hold stays text, nothing from elsewhere is named, sizes stay within bounds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from octvideo.evaluation.calibration import Bin, Reliability
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.pictures import Curve
from octvideo.evaluation.scores import VideoScores
from octvideo.inference.segments import Segment
from octvideo.inference.timeline_document import timeline_document
from octvideo.pages.card import Card, Section, card_page
from octvideo.pages.chosen import common_folder, fitting, in_order_of_use
from octvideo.pages.curves import charts_of, precision_recall_charts
from octvideo.pages.page import json_block
from octvideo.pages.report import Thumbnail, report_document, report_page
from octvideo.pages.timeline import ListedVideo, index_page, timeline_page

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">'\"&{{ 7*7 }}\u2028<!--"


class Parts(HTMLParser):
    """The elements of a page, its texts, and the content of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def scores_of(labels: list[int], predicted: list[int], names: list[str], paths: list[str] | None = None) -> VideoScores:
    values = np.full((len(labels), len(names)), 0.2 / max(len(names) - 1, 1))
    values[np.arange(len(labels)), predicted] = 0.6 + 0.001 * (np.arange(len(labels)) % 300)
    return VideoScores(paths or [f"d/{n}.mp4" for n in range(len(labels))], np.array(labels), values, names)


def several_of(paths: list[str] | None = None, names: list[str] | None = None) -> VideoScores:
    """Three classes, thresholds .5, .6 and .5: the first video has one missed and one wrong, the second all right."""
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)
    values = np.array([[0.9, 0.5, 0.8], [0.7, 0.1, 0.2], [0.4, 0.6, 0.0]])
    thresholds = np.array([0.5, 0.6, 0.5])
    found = truth.argmax(1)
    return VideoScores(
        paths or ["d/0.mp4", "d/1.mp4", "d/2.mp4"], found, values, names or list("abc"), truth, thresholds
    )


def document(**changes: Any) -> dict[str, Any]:
    segments = [Segment(0.0, 1.0, 0, 0.9)]
    made = timeline_document([0.0, 1.0], [1.0, 2.0], [{0: 0.9}, {1: 0.4}], segments, ["wave", HOSTILE], title=HOSTILE)
    return {**made, **changes}


def pages() -> dict[str, str]:
    """A page of each kind, with the worst of names wherever there is a name."""
    names, paths = [HOSTILE, "\udcff\udc80"], [f"d/{HOSTILE}.mp4", "d/\udcff.mp4"]
    scores = scores_of([0, 1], [1, 1], names, paths)
    curves = {"train/loss": Curve([1.0, 2.0], [2.0, 1.0])}
    thumbnails = {0: Thumbnail(None, HOSTILE), 1: Thumbnail("clips/a.mp4")}
    return {
        "report": report_page(
            title=HOSTILE, curves=curves, scores=scores, thumbnails=thumbnails, unreadable=[(HOSTILE, HOSTILE)]
        ),
        "several": report_page(
            title=HOSTILE,
            curves=curves,
            scores=several_of([*paths, "d/c.mp4"], [*names, "c"]),
            thumbnails=thumbnails,
            unreadable=[(HOSTILE, HOSTILE)],
        ),
        "timeline": timeline_page(document(notes=[HOSTILE]), up="index.html"),
        "index": index_page([ListedVideo(HOSTILE, "1.html", document(), HOSTILE)]),
    }


@pytest.mark.parametrize("kind", ["report", "several", "timeline", "index"])
def test_names_are_text_and_only_our_scripts_may_run(kind: str) -> None:
    html = pages()[kind]
    html.encode("utf-8")  # bytes of names that are no text are gone
    parts = Parts(html)
    assert HOSTILE.removesuffix("<!--") in parts.text
    assert "49" not in re.sub(r"<(style|script).*?</\1>", "", html, flags=re.DOTALL)  # no template in a template
    assert [tag for tag, _ in parts.elements if tag in ("img", "iframe", "object", "embed", "base")] == []
    assert not [name for _, attributes in parts.elements for name in attributes if name.startswith("on")]
    data, *programs = parts.scripts
    json.loads(data)
    (policy,) = [a["content"] for tag, a in parts.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "connect-src 'none'" in policy
    for program in programs:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()}'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


@pytest.mark.parametrize("kind", ["report", "several", "timeline", "index"])
def test_nothing_from_elsewhere_is_named(kind: str) -> None:
    parts = Parts(pages()[kind])
    loaded = [a.get(key) for _, a in parts.elements for key in ("src", "href", "action", "srcset") if a.get(key)]
    assert loaded and not [url for url in loaded if re.match(r"\w+:|//", str(url)) and url != "data:,"]
    assert ("html", {"lang": "en"}) in parts.elements


def test_json_can_not_leave_its_block() -> None:
    text = json_block({HOSTILE: [HOSTILE, float("nan")]})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, None]}


def test_the_videos_that_readers_look_for_come_first() -> None:
    # Of class 0 six are right; of class 1 two are taken for 0 and one for 2.
    scores = scores_of([0] * 6 + [1] * 3, [0] * 6 + [0, 0, 2], ["a", "b", "c"])
    order = in_order_of_use(scores)
    assert sorted(order) == list(range(9))
    assert order[:3] == [8, 7, 6]  # the most confident mistakes
    assert order[3:] == [5, 4, 3, 2, 1, 0]
    many = scores_of([0, 1] * 50, [1, 2] * 50, ["a", "b", "c"])  # 24 mistakes, then cell by cell
    assert {(n % 2) for n in in_order_of_use(many)[24:26]} == {0, 1}
    assert in_order_of_use(scores_of([], [], ["a"])) == []
    # Beyond those 24 the first hit comes before the seventh mistake of a cell.
    few = scores_of([0] * 30 + [1], [1] * 31, ["a", "b"])
    assert in_order_of_use(few)[24:] == [30, 5, 4, 3, 2, 1, 0]
    assert fitting([4, 4, 1], 8) == 2 and fitting([9], 8) == 0


def test_the_document_of_a_run_by_hand() -> None:
    scores = scores_of([0, 0, 1], [0, 1, 1], ["a", "b"], ["r/x/1.mp4", "r/x/2.mp4", "r/y/3.mp4"])
    made = report_document(scores, {1: Thumbnail("clips/2.mp4"), 2: Thumbnail(None, "no such file")})
    assert made["counts"] == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert made["table"][0][:3] == [2, 1, 2] and made["table"][1][:3] == [1, 1, 1]
    assert made["folder"] == "r/" and made["total"] == 3
    # The mistake; then the one whose thumbnail failed; then the one without.
    assert made["videos"] == [
        ["x/2.mp4", 0, 1, 601, 200, 0],
        ["y/3.mp4", 1, 1, 602, 602, -2],
        ["x/1.mp4", 0, 0, 600, 600, -1],
    ]
    assert made["clips"] == ["clips/2.mp4"] and made["reasons"] == ["no such file"] and made["mistakes"] == [0]
    assert common_folder([]) == "" and common_folder(["/a/b.mp4"]) == "/a/"


def test_the_document_of_several_labels_by_hand() -> None:
    made = report_document(several_of(), {1: Thumbnail("clips/1.mp4")})
    assert made["counts"] == [] and made["total"] == 3 and made["classes"] == ["a", "b", "c"]
    # The one with a thumbnail; then the one whose score is the farthest from its threshold, on the wrong side.
    assert made["videos"] == [
        ["1.mp4", [0], [0], [700], [700], 0],
        ["2.mp4", [1, 2], [1], [600], [600, 0], -1],
        ["0.mp4", [0, 1], [0, 2], [900, 800], [900, 500], -1],
    ]
    assert made["mistakes"] == [1, 2] == [made["videos"].index(row) for row in made["videos"] if row[1] != row[2]]
    # Videos, taken, both, average precision; threshold.
    assert [[*row[:4], row[-1]] for row in made["table"]] == [
        [2, 2, 2, 1.0, 0.5],
        [2, 1, 1, 1.0, 0.6],
        [1, 1, 0, 0.3333, 0.5],
    ]
    scores = several_of()
    scores.scores[2, 1] = np.nan
    made = report_document(scores, {})
    assert [row[1:5] for row in made["videos"] if row[0] == "2.mp4"] == [[[2, 1], [], [], [0, None]]]
    page = report_page(title="r", scores=scores)
    assert "3 videos of 3 classes, 1.7 labels a video" in page and "Labels by their thresholds." in page
    assert "1 video without finite scores" in page and "Confusion matrix" not in page
    assert "Labels by a threshold of .5." in report_page(title="r", scores=replace(scores, thresholds=None))


def test_of_several_labels_what_was_found_missed_and_wrong_is_shown_of_each_class() -> None:
    n, k = 300, 10
    rng = np.random.default_rng(0)
    truth = rng.random((n, k)) < 0.2
    truth[:, 0] |= ~truth.any(1)
    values = np.clip(0.3 + 0.3 * truth + 0.2 * rng.standard_normal((n, k)), 0, 1)
    scores = VideoScores([f"{v}.mp4" for v in range(n)], truth.argmax(1), values, [f"c{c}" for c in range(k)], truth)
    order = in_order_of_use(scores)
    assert sorted(order) == list(range(n))
    # After the mistakes at the beginning, one of each class and kind before the second of any.
    named = values.astype(np.float32) >= 0.5
    next_ones = order[24 : 24 + 3 * k]
    for kind in (truth & named, truth & ~named, ~truth & named):
        assert kind[next_ones].any(0).all()
    for chart in precision_recall_charts(scores):
        row = int(chart.title[1:])
        places = [tuple(map(float, place.split())) for place in chart.lines[0].path[1:].split("L")]
        area = sum((b[0] - a[0]) * (1000 - b[1]) for a, b in pairwise(places)) / 1e6
        sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
        assert area == pytest.approx(sklearn.average_precision_score(truth[:, row], scores.scores[:, row]), abs=1e-3)
        recall, precision = (f(truth[:, row], named[:, row]) for f in (sklearn.recall_score, sklearn.precision_score))
        assert chart.lines[1].path.startswith(f"M{1000 * recall:.1f} {1000 * (1 - precision):.1f}L")
    assert len(precision_recall_charts(scores)) == 10


def test_a_page_of_any_number_of_videos_stays_below_5_mb() -> None:
    rng = np.random.default_rng(0)
    n, k = 20_000, 60
    labels = rng.integers(0, k, n)
    predicted = np.where(rng.random(n) < 0.7, labels, rng.integers(0, k, n))
    values = np.zeros((n, k), np.float32)
    values[np.arange(n), predicted] = rng.random(n)
    paths = [f"/data/{a}/{'long' * 80}{b}.mp4" for b, a in enumerate(labels)]
    html = report_page(title="large", scores=VideoScores(paths, labels, values, [f"class {c}" for c in range(k)]))
    data = json.loads(Parts(html).scripts[0])
    assert 4_000_000 < len(html.encode()) < 5_000_000
    # Not all are listed, which the page says; mistakes are, and all are counted.
    assert len(data["videos"]) < data["total"] == n == sum(count for *_, count in data["counts"])
    wrong = sum(count for row, column, count in data["counts"] if row != column)
    assert sum(row != column for _, row, column, *_ in data["videos"]) == wrong


def test_runs_that_are_not_tested_and_videos_without_labels() -> None:
    curves = {"train/loss": Curve([1.0], [2.0]), "val/top1": Curve([1.0, 2.0], [float("nan"), 0.5])}
    html = report_page(title="r", curves=curves)
    assert "not tested yet" in html and "confusion" not in html.lower().split("<style>")[0].split("</style>")[-1]
    assert [chart.title for chart in charts_of(curves)] == ["Loss", "Top-1"]
    unlabelled = VideoScores(["a.mp4"], np.array([-1]), np.ones((1, 2)), ["a", "b"])
    assert "none has a known label" in report_page(title="r", scores=unlabelled)
    both = VideoScores(["a.mp4", "b.mp4"], np.array([-1, 0]), np.ones((2, 2)), ["a", "b"])
    assert "1 more without a label" in report_page(title="r", scores=both)


def test_curves_are_drawn_where_their_values_are() -> None:
    many = Curve([n / 1250 for n in range(5000)], [1.0] * 5000)
    (chart,) = charts_of({"train/loss": Curve([1.0, 4.0], [3.0, 1.0]), "train/loss_step": many})
    steps, train = chart.lines
    assert train.path == "M250.0 0.0L1000.0 666.7" and train.last == "1" and train.kind == "train"
    assert steps.path.count("L") == 599 and not train.is_dot
    (alone,) = charts_of({"train/loss": Curve([1.0], [2.0])})[0].lines
    assert alone.is_dot and alone.path == "M1000.0 0.0L1000.0 0.0"
    assert chart.y_ticks[0] == (0.0, "0") and chart.y_ticks[-1] == (1.0, "3")
    assert ("4" in [text for _, text in chart.x_ticks]) and charts_of({"lr": Curve([1.0], [float("nan")])}) == []


def test_bars_of_a_card_stand_where_their_shares_are() -> None:
    chart = Reliability((Bin(0.4, 0.6, 4, 1, 0.5),), 5)
    low, high = wilson_interval(1, 4)
    html = card_page(Card("a", "b", sections=(Section("Calibration", chart=chart),)))
    assert '<rect class="share-right" x="404.0" y="750.0" width="192.0" height="250.0">' in html
    assert f'd="M500.0 {1000 * (1 - high):.1f}V{1000 * (1 - low):.1f}"' in html


def test_a_timeline_of_any_length_has_about_the_same_size() -> None:
    n = 30_000
    scores = [{w % 400: 0.9, 7: 0.3} for w in range(n)]
    segments = [Segment(float(w), w + 1.0, w % 400, 0.9) for w in range(n)]
    starts = [float(w) for w in range(n)]
    made = timeline_document(
        starts, [s + 1 for s in starts], scores, segments, [f"c{c}" for c in range(400)], video="v.mp4"
    )
    assert len(made["classes"]) == 20 and len(made["starts"]) == 2000 == len(made["scores"][0])
    assert made["duration"] == n
    assert made["notes"] == [
        "20 of 400 classes: those with segments and the highest scores; 380 left out",
        "30,000 windows: each of 2,000 cells of time shows its highest score",
        "28500 segments of other classes are left out",
    ]
    assert len(timeline_page(made)) < 1_000_000


def test_a_gap_between_windows_stays_one() -> None:
    made = timeline_document([0.0, 5.0], [1.0, 6.0], [{0: 0.5}, {0: 0.75}], [Segment(5.0, 6.0, 0, 0.75)], ["a"])
    assert (made["starts"], made["ends"], made["scores"]) == ([0.0, 5.0], [1.0, 6.0], [[0.5, 0.75]])
    assert made["segments"] == [{"start": 5.0, "end": 6.0, "class": 0, "score": 0.75}] and made["notes"] == []


def test_the_list_names_what_could_not_be_read(tmp_path: Path) -> None:
    parts = Parts(index_page([ListedVideo("a.mp4", "1.html", document()), ListedVideo("b.mp4", None, None, "rotten")]))
    assert [a["href"] for tag, a in parts.elements if tag == "a" and "skip" not in str(a)] == ["1.html"]
    assert "b.mp4" in parts.text and "rotten" in parts.text and "2 videos" in parts.text


def test_scores_that_are_not_finite_are_wrong_and_in_no_cell() -> None:
    scores = scores_of([0, 0, 1, 1], [0, 1, 1, 0], ["a", "b"])
    scores.scores[0], scores.scores[2, 0], scores.scores[3] = np.nan, np.nan, np.inf
    made = report_document(scores, {})
    assert made["counts"] == [[0, 1, 1]] and made["total"] == 4
    assert [row[:3] for row in made["table"]] == [[2, 0, 1], [2, 0, 0]]
    assert sorted(video[:5] for video in made["videos"])[0] == ["0.mp4", 0, -1, 0, 0]
    assert [made["videos"][n][0] for n in made["mistakes"]] == ["1.mp4"]
    html = report_page(title="r", scores=scores)
    assert "3 videos without finite scores: counted as wrong" in html and "0 of 4 videos</div>" in html


@pytest.mark.parametrize(("n", "k"), [(1, 5), (50, 2), (300, 7), (900, 400)])
def test_figures_are_those_of_torchmetrics(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, max(k - 1, 1), n)  # the last class has no videos
    values = rng.dirichlet(np.ones(k), n).astype(np.float32)
    values[np.arange(n), labels] += rng.random(n) < 0.5
    scores = VideoScores([f"d/{v}.mp4" for v in range(n)], labels, values, [f"c{c}" for c in range(k)])
    made = report_document(scores, {})
    tensors = torch.from_numpy(values), torch.from_numpy(labels)
    counts = multiclass_confusion_matrix(*tensors, k).numpy()
    assert made["counts"] == [[*map(int, cell), int(counts[tuple(cell)])] for cell in np.argwhere(counts)]
    total = np.bincount(labels, minlength=k)
    for column, top in ((1, 1), (2, min(5, k))):
        shares = multiclass_accuracy(*tensors, k, average=None, top_k=top).numpy()
        assert [row[column] for row in made["table"]] == (shares * total).round().astype(int).tolist()
    assert [row[0] for row in made["table"]] == total.tolist()
    top1 = float(multiclass_accuracy(*tensors, k, average="micro"))
    shown = re.findall(r'"tile-value">(.*?)<', report_page(title="r", scores=scores))
    assert shown[0] == f"{100 * top1:.1f} %"
