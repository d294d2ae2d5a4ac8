"""The picture of a timeline, and the captions in its frames: what is drawn where."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from octvideo.errors import UserError
from octvideo.inference.captions import Captions
from octvideo.inference.segments import Segment
from octvideo.inference.timeline_picture import clock_text, draw_timeline

NAMES = ["walk", "jump", "\u8dd1\u6b65 & <run>", "\u0631\u0645\u064a", "$x$"]
STARTS, ENDS = [0.0, 10.0, 20.0], [20.0, 30.0, 40.0]  # they speak for 0 to 15, 15 to 25, 25 to 40
SCORES = [{0: 0.9, 1: 0.05}, {1: 0.8, 0: 0.1}, {0: 0.2, 2: 0.3, 1: 0.1}]
SEGMENTS = [Segment(0.0, 15.0, 0, 0.9), Segment(15.0, 25.0, 1, 0.8)]
ORANGE = np.array([217, 98, 43])


def like(image: np.ndarray, colour: np.ndarray, within: int = 12) -> np.ndarray:
    """Where an image (H, W, 3) has a colour, (H, W)."""
    return (np.abs(image.astype(int) - colour) <= within).all(-1)


def test_scores_are_colours_and_segments_bars(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw_timeline(path, STARTS, ENDS, SCORES, SEGMENTS, NAMES, title="a $b$")
    image = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    assert image.shape == (2 * (70 + 34 + 5 * 26), 2000, 3)
    rows = [slice(2 * (70 + 26 * n), 2 * (70 + 26 * (n + 1))) for n in range(5)]
    blank = np.flatnonzero((image[rows[2].start + 10] >= 250).all(-1))  # columns of a row that have no colour
    left, right = blank[blank < 1000].max() + 1, blank[blank > 1000].min()
    width = right - left
    bars = [np.flatnonzero(like(image[row], ORANGE).any(0)) for row in rows]
    assert [bar.size > 0 for bar in bars] == [True, True, False, False, False]
    for bar, start, end in ((bars[0], 0, 15), (bars[1], 15, 25)):  # in order of their first segment
        assert bar[0] == pytest.approx(left + width * start / 40, abs=3)
        assert bar[-1] == pytest.approx(left + width * end / 40, abs=3)
    dark = [image[rows[0].start + 15, left + width * at // 40].sum() for at in (7, 20, 35)]
    assert dark[0] < dark[2] < dark[1]  # .9, .2, .1


def test_a_picture_of_a_day_shows_short_moments_and_says_what_is_left_out(tmp_path: Path) -> None:
    names = [f"class of {n}" for n in range(400)]
    starts = np.arange(0, 86400, 10.0)
    scores: list[dict[int, float]] = [{n % 400: 0.01} for n in range(len(starts))]
    scores[5000] = {77: 0.9}
    path = tmp_path / "day.svg"
    draw_timeline(path, starts, starts + 10, scores, [Segment(50000.0, 50010.0, 77, 0.9)], names, most_rows=12)
    text = path.read_text("utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)", text)
    assert "12 of 400 classes: those with segments and the highest scores; 388 left out; " in " ".join(texts)
    assert "8,640 windows: each column shows its highest score" in " ".join(texts)
    assert next(name for name in texts if name.startswith("class of")) == "class of 77"
    assert {"0:00:00", "12:00:00", "24:00:00"} <= set(texts) and len(text) < 200_000


def test_an_svg_keeps_letters_of_any_script(tmp_path: Path) -> None:
    draw_timeline(tmp_path / "a.svg", STARTS, ENDS, SCORES, SEGMENTS, NAMES, title="\u89c6\u9891 & <b>")
    text = (tmp_path / "a.svg").read_text("utf-8")
    for name in ("\u8dd1\u6b65 &amp; &lt;run&gt;", "\u0631\u0645\u064a", "$x$", "\u89c6\u9891 &amp; &lt;b&gt;"):
        assert f">{name}<" in text


def test_where_there_is_no_window_there_is_no_colour(tmp_path: Path) -> None:
    draw_timeline(tmp_path / "a.png", [0.0, 90.0], [10.0, 100.0], [{0: 1.0}, {0: 1.0}], [], ["walk"])
    image = (imread(tmp_path / "a.png")[..., :3] * 255).astype(np.uint8)
    line = image[2 * 70 + 15]
    assert (line[1000:1400] == 255).all() and line[200].sum() < 200 and line[1900].sum() < 200


def test_what_can_not_be_drawn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"picture .*a\.jpg: got \.jpg, expected \.png or \.svg"):
        draw_timeline(tmp_path / "a.jpg", STARTS, ENDS, SCORES, [], NAMES)
    with pytest.raises(UserError, match=r"picture .*a\.png: there are no windows to draw"):
        draw_timeline(tmp_path / "a.png", [], [], [], [], NAMES)
    with pytest.raises(UserError, match=r"picture .*: no folder .*none"):
        draw_timeline(tmp_path / "none" / "a.png", STARTS, ENDS, SCORES, [], NAMES)
    assert not list(tmp_path.iterdir())


def test_clocks() -> None:
    assert clock_text(3599.96) == "60:00" and clock_text(86400, hours=True) == "24:00:00"


# ── captions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def painted(time_sec: float, *, height: int = 360, width: int = 640, segments: list[Segment] = SEGMENTS) -> np.ndarray:
    """A grey frame with the captions of a time."""
    image = np.full((height, width, 3), 128, np.uint8)
    Captions(STARTS, ENDS, SCORES, segments, NAMES)(image, time_sec)
    return image


def bar_lengths(image: np.ndarray) -> list[int]:
    """Pixels of each bar, from top to bottom, of segments and of others."""
    colour = like(image, ORANGE, 60) | like(image, np.array([42, 120, 181]), 60)
    full = colour.sum(1)
    starts = [y for y in range(1, len(full)) if full[y] > 4 and full[y - 1] <= 4]
    return [int(full[y + 1]) for y in starts]


def test_captions_show_the_scores_of_the_nearest_window() -> None:
    first, second = painted(14.9), painted(15.1)
    assert (first[:180] == 128).all() and (first[:, 400:] == 128).all() and (first != 128).any()
    assert (first == painted(3.0)).all() and (first != second).any() and (second == painted(24.9)).all()
    assert like(first, ORANGE, 40).sum() > 1000 and like(painted(30.0), ORANGE, 40).sum() == 0
    lengths = bar_lengths(first)
    assert lengths[0] / 0.9 == pytest.approx(lengths[1] / 0.05, rel=0.2)


def test_a_class_with_a_segment_is_shown_whatever_its_rank() -> None:
    image = np.full((360, 640, 3), 128, np.uint8)
    captions = Captions(STARTS, ENDS, SCORES, [Segment(0.0, 5.0, 4, 0.1)], NAMES, num_rows=1)
    captions(image, 1.0)
    later = np.full((360, 640, 3), 128, np.uint8)
    captions(later, 6.0)
    assert (image != later).any() and like(later, np.array([42, 120, 181]), 40).sum() > 1000


@pytest.mark.parametrize(("height", "width"), [(2, 2), (50, 66), (96, 54), (640, 360), (2160, 3840)])
def test_captions_leave_half_of_a_frame_of_any_size(height: int, width: int) -> None:
    image = painted(1.0, height=height, width=width)
    assert (image[: height // 2 - 1] == 128).all()
    assert (image != 128).any() == (height > 40)


def test_a_time_without_scores_has_no_captions() -> None:
    assert (painted(41.0) == 128).all() and (painted(-1.0) == 128).all()
    captions = Captions([0.0, 90.0], [10.0, 100.0], [{0: 1.0}, {0: 1.0}], [], ["walk"])
    image = np.full((360, 640, 3), 128, np.uint8)
    captions(image, 50.0)
    assert (image == 128).all()
