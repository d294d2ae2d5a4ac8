"""Pages in a real browser, opened as files: clicked, typed on, sought in and read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octvideo.evaluation.pictures import Curve
from octvideo.evaluation.scores import VideoScores
from octvideo.inference.segments import Segment
from octvideo.inference.timeline_document import timeline_document
from octvideo.pages.report import Thumbnail, report_page
from octvideo.pages.timeline import timeline_page

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">'\"&{{ 7*7 }}"
CHINESE, ARABIC = "打开盒子 · 开箱", "فتح الصندوق"
LEFT, RIGHT, UP, DOWN = "\ue012", "\ue014", "\ue013", "\ue015"
TAB, ENTER, ESCAPE, HOME, END, PAGE_DOWN, PAGE_UP = "\ue004", "\ue007", "\ue00c", "\ue011", "\ue010", "\ue00f", "\ue00e"
FOCUSED = "document.activeElement"


@pytest.fixture
def video(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any]) -> Path:
    """Four seconds that a browser plays."""
    return encode(tmp_path / "videos" / "clip.mp4", moving(80), g=10)


def write_timeline(folder: Path, video: Path, names: list[str]) -> Path:
    starts = [n / 2 for n in range(8)]
    scores = [{0: 0.9 if n < 4 else 0.1, 1: 0.05 * n, 2: 0.8 if n in (2, 3) else 0.0} for n in range(8)]
    segments = [Segment(0.0, 2.0, 0, 0.9), Segment(1.0, 2.0, 2, 0.8), Segment(3.0, 4.0, 1, 0.35)]
    document = timeline_document(
        starts,
        [start + 0.5 for start in starts],
        scores,
        segments,
        names,
        title=names[2],
        video=f"videos/{video.name}",
    )
    file = folder / "index.html"
    file.write_text(timeline_page(document), encoding="utf-8")
    return file


def write_report(folder: Path, clip: Path, names: list[str], labels: list[int], predicted: list[int]) -> Path:
    n, k = len(labels), len(names)
    values = np.full((n, k), 0.1 / k)
    values[np.arange(n), predicted] = 0.5 + 0.4 * np.arange(n) / n
    scores = VideoScores(
        [f"data/{names[a][:9]}/{b}.mp4" for b, a in enumerate(labels)], np.array(labels), values, names
    )
    thumbnails = {number: Thumbnail(f"{clip.parent.name}/{clip.name}") for number in range(0, n, 2)}
    thumbnails[1] = Thumbnail(None, "no frame can be decoded")
    curves = {"train/loss": Curve([1.0, 2.0], [2.0, 1.0]), "val/top1": Curve([1.0, 2.0], [0.4, 0.6])}
    file = folder / "index.html"
    unreadable = [(f"data/{HOSTILE}.mp4", "no such file")]
    html = report_page(title="run", curves=curves, scores=scores, thumbnails=thumbnails, unreadable=unreadable)
    file.write_text(html, encoding="utf-8")
    return file


def position(page: Any) -> float:
    return float(page.one(".plot").get_attribute("aria-valuenow"))


def test_a_timeline_seeks_shows_scores_and_takes_keys(page: Any, tmp_path: Path, video: Path) -> None:
    page.open(write_timeline(tmp_path, video, [CHINESE, ARABIC, HOSTILE]))
    page.until("return document.querySelector('video').readyState >= 1")
    assert page.one("h1").text == HOSTILE == page.driver.title
    assert page.texts(".plot .label bdi") == [CHINESE, HOSTILE, ARABIC]

    from selenium.webdriver.common.action_chains import ActionChains

    over = page.one(".over")
    quarter = over.size["width"] / 4
    ActionChains(page.driver).move_to_element_with_offset(over, quarter + 9, 0).perform()  # from the middle: 3 s
    assert page.one(".now-title").text.startswith("At 0:03.") and position(page) == 0
    assert page.texts(".now bdi")[0] == ARABIC and page.texts(".now .number")[0] == "30 %"
    ActionChains(page.driver).click().perform()
    page.until("return Math.abs(document.querySelector('video').currentTime - 3.05) < 0.1")
    assert position(page) == pytest.approx(3.05, abs=0.05)
    assert [e.text for e in page.all("tr[aria-current] bdi")] == [ARABIC]

    assert page.js("return document.activeElement.className") == "plot"
    for key, time in ((HOME, 0), (RIGHT, 0.5), (PAGE_DOWN, 1), (PAGE_DOWN, 3), (LEFT, 2.5), (PAGE_UP, 1), (END, 4)):
        page.keys(key)
        assert position(page) == time, (key, time)
    page.keys(HOME, " ")
    page.until("return document.querySelector('video').currentTime > 0.3 && !document.querySelector('video').paused")
    page.until("return Number(document.querySelector('.plot').getAttribute('aria-valuenow')) > 0.3")
    page.keys(" ")
    assert page.js("return document.querySelector('video').paused")

    page.keys(*[TAB] * 4, ENTER)  # the last of the headings: the highest score first
    assert page.texts(".segments .number") == ["score", "90 %", "80 %", "35 %"]
    page.keys(TAB, TAB, TAB, ENTER)
    assert position(page) == 3
    assert {url.rsplit("/", 1)[1] for url in page.requests()} == {"index.html", "clip.mp4"}


@pytest.mark.parametrize("width", [320, 380, 730, 760, 1280])
def test_times_below_a_timeline_have_room(page: Any, tmp_path: Path, width: int) -> None:
    starts = [0.0, 0.64]
    document = timeline_document(starts, [0.64, 1.28], [{0: 0.3}] * 2, [], ["a"], title="t")
    file = tmp_path / "index.html"
    file.write_text(timeline_page(document), encoding="utf-8")
    page.open(file, width=width)
    page.until("return document.querySelectorAll('.axis span').length >= 2")
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    places = "return [...document.querySelectorAll('.axis span')].map((e) => e.getBoundingClientRect())"
    boxes = page.js(f"{places}.map((box) => [box.left, box.right])")
    assert all(right <= left for (_, right), (left, _) in pairwise(boxes)), boxes
    assert boxes[-1][1] <= page.js("return document.querySelector('.axis').getBoundingClientRect().right")


@pytest.mark.slow
def test_a_timeline_without_a_video_that_plays_says_so(page: Any, tmp_path: Path) -> None:
    bad = tmp_path / "videos" / "clip.mp4"
    bad.parent.mkdir()
    bad.write_bytes(b"nothing" * 100)
    page.open(write_timeline(tmp_path, bad, ["a", "b", "c"]), width=390)
    page.until("return !document.querySelector('.problem').hidden")
    page.js("document.querySelector('.plot').focus()")
    page.keys(RIGHT)
    assert position(page) == 0.5
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_the_list_leads_to_pages_and_back(page: Any, tmp_path: Path, video: Path) -> None:
    from octvideo.pages.timeline import ListedVideo, index_page

    document = timeline_document([0.0], [4.0], [{0: 0.9}], [], [ARABIC], title=CHINESE, video=f"videos/{video.name}")
    (tmp_path / "1.html").write_text(timeline_page(document, up="index.html"), encoding="utf-8")
    rows = [ListedVideo(CHINESE, "1.html", document), ListedVideo(HOSTILE, None, None, "rotten")]
    (tmp_path / "index.html").write_text(index_page(rows), encoding="utf-8")
    page.open(tmp_path / "index.html")
    assert "rotten" in page.one("tbody").text and HOSTILE in page.one("tbody").text
    page.keys(TAB, TAB, ENTER)  # past the link to the content
    page.until("return document.querySelectorAll('.plot').length === 1")
    page.keys(TAB, TAB, ENTER)
    page.until("return document.querySelectorAll('.videos').length === 1")


def cells(page: Any) -> list[str]:
    return page.texts(".cell")


@pytest.mark.slow
def test_a_run_of_two_classes(page: Any, tmp_path: Path, video: Path) -> None:
    page.open(write_report(tmp_path, video, [CHINESE, HOSTILE], [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0]))
    assert page.texts(".tile-value")[0] == "50.0 %" and "3 of 6 videos" in page.one(".tile.first").text
    assert cells(page) == ["2", "2", "1", "1"]
    assert "no such file" in page.one(".trouble").text and "no frame can be decoded" in page.one(".trouble").text
    page.until("const v = document.querySelector('#mistakes video'); return v && v.currentTime > 0.1")
    # By the keyboard alone: from the first cell to the one right of it, open, close, and back there.
    page.js("document.querySelector('.cell[tabindex=\"0\"]').focus()")
    page.keys(RIGHT, ENTER)
    assert page.one("#clips-title").text.endswith(": 2 videos") and CHINESE in page.one("#clips-title").text
    assert len(page.all("dialog .clip")) == 2
    page.until("const v = document.querySelector('dialog video'); return v && v.currentTime > 0.1")
    for _ in range(8):  # the focus stays inside
        page.keys(TAB)
        assert page.js("return document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keys(ESCAPE)
    page.until("return !document.querySelector('dialog').open")
    assert page.js("return document.activeElement.textContent") == "2"
    # The video whose thumbnail could not be made is there, with the reason.
    page.keys(LEFT, ENTER)
    assert "no frame can be decoded" in page.one("dialog").text
    page.one(".close").click()
    page.one("#mistakes .pauses").click()
    page.until("return [...document.querySelectorAll('video.thumb')].every((v) => v.paused)")
    assert page.one("#mistakes .pauses").text == "Play clips"
    # A curve stands where the lines of its chart say: from a loss of 2 to 1.
    places = """
      const plane = document.querySelector('.plane'), top = (e) => e.getBoundingClientRect().top;
      const line = (text) => top([...plane.querySelectorAll('.y')].find((e) => e.textContent === text));
      const curve = plane.querySelector('path').getBoundingClientRect();
      return [line('2') - curve.top, line('1') - curve.bottom];
    """
    assert page.js(places) == pytest.approx([0, 0], abs=2)
    assert page.one("#unread summary").text == "2 videos" == page.one(".problem a").text.partition(" could")[0]
    page.one(".problem a").click()
    page.until("return document.querySelector('#unread').getBoundingClientRect().top < innerHeight")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "is_dark"), [(360, False), (1280, True)])
def test_a_run_of_several_labels_a_video(page: Any, tmp_path: Path, video: Path, width: int, is_dark: bool) -> None:
    names = [
        CHINESE,
        ARABIC,
        HOSTILE,
        *(f"a class with a long name {n} " + "verylongword" * (n % 3) for n in range(17)),
    ]
    truth = np.zeros((40, 20), bool)
    truth[np.arange(40), np.arange(40) % 20] = truth[np.arange(40), (np.arange(40) + 1) % 20] = True
    values = np.where(truth, 0.8, 0.1)
    values[0, 1], values[0, 2] = 0.2, 0.9  # the second class is missed, the third one wrong
    paths = [f"d/{HOSTILE if n == 0 else n}.mp4" for n in range(40)]
    scores = VideoScores(paths, truth.argmax(1), values, names, truth)
    curves = {name: Curve([1.0, 2.0], [0.3, 0.5]) for name in ("val/map", "val/map_micro")}
    clips = {0: Thumbnail(f"videos/{video.name}")}
    html = report_page(title=HOSTILE, curves=curves, scores=scores, thumbnails=clips)
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    page.dark(is_dark)
    page.open(tmp_path / "index.html", width=width)
    assert page.poor_contrast() == [] and page.js("return document.documentElement.scrollWidth <= innerWidth")
    assert page.texts(".tile-name") == ["mAP", "mAP micro", "top-1"]
    lines = [f"{CHINESE} right 80.0 %", f"{ARABIC} missed 20.0 %", f"{HOSTILE} wrong 90.0 %", f"{HOSTILE}.mp4"]
    assert [line.replace("\u00a0", " ") for line in page.texts("#mistakes figcaption div")] == lines
    page.until("const v = document.querySelector('#mistakes video'); return v && v.currentTime > 0.1")
    titles = page.texts(".chart figcaption b > bdi")
    assert len(titles) == 13 and titles[-1] == "mAP" and HOSTILE in titles
    # Sorted by what was missed, and by what was wrong, the first cell opens its video.
    for column, said in ((7, f"{ARABIC}, missed: 1 video"), (8, f"{HOSTILE}, wrong: 1 video")):
        page.js(f"document.querySelectorAll('.classes thead th')[{column}].querySelector('button').click()")
        page.js(f"document.querySelector('.classes tbody tr').children[{column}].querySelector('button').click()")
        assert page.one("#clips-title").text == said and len(page.all("dialog .clip")) == 1
        assert page.poor_contrast() == []
        page.keys(ESCAPE)
    page.one("input[type=search]").send_keys("الصن")
    assert [row.text.split()[0] for row in page.all(".classes tbody tr") if row.is_displayed()] == [ARABIC.split()[0]]
    page.js(
        "[...document.querySelectorAll('.classes tbody tr')].find((e) => !e.hidden).querySelector('button').click()"
    )
    assert page.one("#clips-title").text == f"{ARABIC}: 4 videos"
    assert page.texts("dialog figcaption")[0].startswith(CHINESE)  # the one that was missed comes first
    page.dark(False)


@pytest.mark.slow
def test_a_run_of_four_hundred_classes(page: Any, tmp_path: Path, video: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    names = [f"class {n}" for n in range(400)]
    names[5], names[9] = CHINESE, ARABIC
    labels = [n % 400 for n in range(1200)]
    predicted = [9 if n == 5 else n % 400 for n in range(1200)]
    page.open(write_report(tmp_path, video, names, labels, predicted))
    assert page.all(".cell") == []
    # From the top left corner, the way to the mistake in row 5, by keys.
    page.js("document.querySelector('.matrix-picture').focus()")
    page.keys(*[DOWN] * 5)
    assert CHINESE in page.one(".readout").text and "no video" in page.one(".readout").text
    ActionChains(page.driver).key_down("\ue008").send_keys(RIGHT).send_keys(RIGHT).key_up("\ue008").perform()
    assert page.one(".readout").text == f"{CHINESE} taken for {ARABIC}: 1 video"
    page.keys(ENTER)
    assert page.one("#clips-title").text == f"{CHINESE} taken for {ARABIC}: 1 video"
    page.keys(ESCAPE)
    # The same by the mouse, where a cell is two pixels wide.
    picture = page.one(".matrix-picture canvas")
    size = picture.size["width"] / 400
    middle = -200 * size
    ActionChains(page.driver).move_to_element_with_offset(
        picture, middle + 9.5 * size, middle + 5.5 * size
    ).click().perform()
    assert page.one("#clips-title").text == f"{CHINESE} taken for {ARABIC}: 1 video"
    page.keys(ESCAPE)
    # Sorted by name, by videos, and found by typing.
    heads = page.all(".classes .sorts")
    heads[0].click()
    first = page.texts(".classes tbody th")
    assert first[0] == "class 0" and first[1] == "class 1" and first[2] == "class 2"
    heads[0].click()
    assert page.texts(".classes tbody th") == first[::-1]
    assert page.js("return document.querySelector('.classes th').getAttribute('aria-sort')") == "descending"
    heads[2].click()
    assert page.texts(".classes tbody th")[0] == CHINESE  # the one that is not always right
    search = page.one("input[type=search]")
    search.send_keys("الصن")
    assert [row.text.split()[0] for row in page.all(".classes tbody tr") if row.is_displayed()] == [ARABIC.split()[0]]
    assert page.one("[role=status]").text == "1 of 400 classes"
    page.keys(TAB)
    while page.js(f"return {FOCUSED}.tagName") != "BUTTON" or page.js(f"return {FOCUSED}.className") == "sorts":
        page.keys(TAB)
    page.keys(ENTER)
    assert page.one("#clips-title").text == f"{ARABIC}: 3 videos"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("num_classes", [2, 30, 400])
def test_nothing_reaches_over_the_side(page: Any, tmp_path: Path, video: Path, width: int, num_classes: int) -> None:
    names = [f"a class with a long name {n} " + "verylongword" * (n % 3) for n in range(num_classes)]
    labels = list(range(num_classes)) * 2
    page.open(write_report(tmp_path, video, names, labels, [*labels[1:], 0]), width=width)
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("is_dark", [False, True])
def test_all_text_has_contrast(page: Any, tmp_path: Path, video: Path, is_dark: bool) -> None:
    page.dark(is_dark)
    rows = [(a, b) for a in range(5) for b in range(6) for _ in range(1 + 3 * (a == b) + a)]
    rows += [(5, 5)] * 3  # all are right, in the strongest colour
    labels, predicted = [a for a, _ in rows], [b for _, b in rows]
    page.open(write_report(tmp_path, video, [f"class {n}" for n in range(6)], labels, predicted))
    assert page.poor_contrast() == []
    page.all(".cell")[1].click()
    assert page.poor_contrast() == []
    page.open(write_timeline(tmp_path, video, ["a", "b", "c"]))
    assert page.poor_contrast() == []
    page.dark(False)


@pytest.mark.slow
def test_what_a_page_asks_others_for_would_be_seen(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text('<img src="http://127.0.0.1:9/a.png"><script>x y</script>', encoding="utf-8")
    chromium.open(file)
    assert "http://127.0.0.1:9/a.png" in chromium.requests() and len(chromium.errors()) == 2
    # The same inside of a page of ours is stopped by the page's own policy.
    html = timeline_page(timeline_document([0.0], [1.0], [{0: 0.9}], [], ["a"], title="t"))
    planted = '<main id="main"><img src="http://127.0.0.1:9/a.png"><script>document.title = "hacked"</script>'
    assert '<main id="main">' in html
    file.write_text(html.replace('<main id="main">', planted), encoding="utf-8")
    chromium.open(file)
    assert chromium.driver.title == "t"
    assert len([said for said in chromium.errors() if "Content Security Policy" in said]) == 2
