"""`octvideo report --page` and `octvideo timeline --page`: folders that are whole, and gone on with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octvideo.cli.timeline_page import TimelinePages
from octvideo.errors import UserError
from octvideo.evaluation.scores import VideoScores
from octvideo.inference.segments import Segment


@dataclass
class Windows:
    """What is known of a video; by default, four seconds of it."""

    starts: list[float] = field(default_factory=lambda: [0.0, 2.0])
    ends: list[float] = field(default_factory=lambda: [2.0, 4.0])
    scores: list[dict[int, float]] = field(default_factory=lambda: [{0: 0.9}, {1: 0.7}])


NOTHING = Windows([], [], [])


def data_of(page: Path) -> dict[str, Any]:
    html = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    return json.loads(found[1])


def a_run(folder: Path, videos: list[str]) -> Path:
    labels = np.arange(len(videos)) % 2
    folder.mkdir(parents=True)
    VideoScores(videos, labels, np.tile([0.7, 0.3], (len(videos), 1)), ["a", "b"]).save(folder / "scores.npz")
    return folder


def test_a_page_of_a_run_whose_videos_are_gone(octvideo: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ["gone/1.mp4", "gone/2.mp4"])
    (run / "unreadable_test.txt").write_text("# root: /d\nrotten.mp4\tno frame can be decoded\n")
    _, err = octvideo("report", run, "--page")
    assert "2 of 2 thumbnails can't be made, first: gone/2.mp4: no such file" in err and "--videos DIR" in err
    html = (run / "page" / "index.html").read_text(encoding="utf-8")
    assert "rotten.mp4" in html and "gone/2.mp4" in html and "3 videos could not be read" in html
    data = data_of(run / "page" / "index.html")
    assert data["reasons"] == ["no such file"] and [row[5] for row in data["videos"]] == [-2, -2]


def test_a_page_of_several_labels_a_video(octvideo: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    truth = np.array([[1, 1], [1, 0]], bool)
    values = np.array([[0.9, 0.2], [0.4, 0.6]])
    VideoScores(["gone/1.mp4", "gone/2.mp4"], np.zeros(2), values, ["a", "b"], truth).save(folder / "scores.npz")
    _, err = octvideo("report", folder, code=2)
    assert "there is no confusion matrix, and the run has no curves: --details or --page" in err
    _, err = octvideo("report", folder, "--page")
    assert "2 of 2 thumbnails can't be made" in err and not (folder / "report.png").exists()
    html = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert "Confusion matrix" not in html.split("<main")[1].split("<script")[0] and "Precision over recall" in html
    data = data_of(folder / "page" / "index.html")
    assert {row[0]: row[1:3] for row in data["videos"]} == {"1.mp4": [[0, 1], [0]], "2.mp4": [[0], [1]]}


@pytest.mark.slow  # processes for decoding start
def test_thumbnails_are_made_once_and_rotten_videos_named(
    octvideo: Any, tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any]
) -> None:
    names = [f"v/{n}.mp4" for n in range(6)]
    for name in names[:4]:
        encode(tmp_path / "data" / name, moving(30))
    (tmp_path / "data" / names[4]).write_bytes(b"no video" * 100)
    run = a_run(tmp_path / "run", names)
    words = ["report", run, "--page", tmp_path / "out", "--videos", tmp_path / "data"]
    _, err = octvideo(*words)
    assert "2 of 6 thumbnails can't be made" in err
    data = data_of(tmp_path / "out" / "index.html")
    clips = {path: row[-1] for path, *row in data["videos"]}
    assert [clips[f"{n}.mp4"] >= 0 for n in range(6)] == [True] * 4 + [False] * 2
    assert data["reasons"][-2 - clips["5.mp4"]] == "no such file"
    assert re.fullmatch(r"Invalid data found.*", data["reasons"][-2 - clips["4.mp4"]])
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "clips").iterdir()}
    assert len(made) == 4 and {f"clips/{file.name}" for file in made} == set(data["clips"])
    # One is lost, one video is another now: these two are made.
    next(iter(made)).unlink()
    encode(tmp_path / "data" / names[0], moving(20))
    octvideo(*words, "--thumbnails", 5)
    now = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "clips").iterdir()}
    assert len([file for file in now if made.get(file) == now[file]]) == 3
    assert sum(row[-1] == -1 for row in data_of(tmp_path / "out" / "index.html")["videos"]) == 1
    assert "--thumbnails N makes more" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_pages_of_videos_that_play_that_do_not_and_that_can_not_be_read(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plays = encode(tmp_path / "打开.mp4", moving(80))
    other = encode(tmp_path / "b.avi", moving(80), "mpeg4")
    rotten = tmp_path / "c.mp4"
    rotten.write_bytes(b"no video" * 100)
    segments = [Segment(0.0, 2.0, 0, 0.9)]
    times: list[dict[Path, int]] = []
    for _ in range(2):  # the second time nothing is encoded anew
        pages = TimelinePages(tmp_path / "out", [str(plays), str(other), str(rotten)], ["wave", "sit"], None)
        pages.add(str(plays), Windows(), segments, "")
        pages.add(str(other), Windows(), [], "")
        pages.add(str(rotten), NOTHING, [], "cannot read video 'c.mp4': Invalid data")
        pages.close()
        times.append({file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "videos").iterdir()})
    assert times[0] == times[1] and len(times[0]) == 2
    assert "the page is" in capsys.readouterr().err
    first, second = data_of(tmp_path / "out" / "1.html"), data_of(tmp_path / "out" / "2.html")
    assert (tmp_path / "out" / first["video"]).read_bytes() == plays.read_bytes()
    assert re.fullmatch(r"videos/video-[0-9a-f]{12}\.mp4", first["video"]) and first["title"] == "打开.mp4"
    assert "The video is a copy of the file." in first["notes"]
    assert re.fullmatch(r"videos/b-[0-9a-f]{12}\.mp4", second["video"])
    assert "The video is the file anew, in H.264, so that browsers play it." in second["notes"]
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert 'href="1.html"' in index and "Invalid data" in index and 'href="3.html"' not in index


def test_videos_of_class_folders_are_told_apart(tmp_path: Path) -> None:
    paths = [f"data/test/{name}/001.mp4" for name in ("wave", "sit")]
    pages = TimelinePages(tmp_path, paths, ["wave", "sit"], None)
    for path in paths:
        pages.add(path, NOTHING, [], "no such file")
    pages.close()
    listed = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "wave/001.mp4" in listed and "sit/001.mp4" in listed and "data/" not in listed


def test_the_page_of_one_video_needs_no_list(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any]
) -> None:
    pages = TimelinePages(tmp_path / "out", ["a.mp4"], ["wave", "sit"], [0])
    pages.add(str(encode(tmp_path / "a.mp4", moving(80))), Windows(), [], "")
    pages.close()
    data = data_of(tmp_path / "out" / "index.html")
    assert data["classes"] == ["wave"] and sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "index.html",
        "videos",
    ]
    shutil.rmtree(tmp_path / "out")
    pages = TimelinePages(tmp_path / "out", ["a.mp4"], ["wave", "sit"], None)
    pages.add("gone.mp4", NOTHING, [], "no such file")
    pages.close()
    assert "no such file" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_videos_that_are_gone_from_absolute_paths_have_no_folder_to_start_from(octvideo: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ["/gone/1.mp4"])
    _, err = octvideo("report", run, "--page")
    assert "--videos DIR" not in err and "can be linked to where they were" in err


def test_a_page_of_others_is_kept(octvideo: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ["gone/1.mp4"])
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("my own page")
    _, err = octvideo("report", run, "--page", site, code=2)
    assert f"error: --page {site}: its index.html was not written by octvideo, and is kept: name another folder" in err
    assert (site / "index.html").read_text() == "my own page"
    (site / "index.html").unlink()
    (site / "index.html").mkdir()  # what can't be read is not ours
    _, err = octvideo("report", run, "--page", site, code=2)
    assert "its index.html was not written by octvideo" in err
    (site / "index.html").rmdir()
    (site / "02.html").write_text("my own page")
    with pytest.raises(UserError, match=r"its 02\.html was not written by octvideo"):
        TimelinePages(site, [f"{n}.mp4" for n in range(10)], ["a", "b"], None)
    TimelinePages(site, [f"{n}.mp4" for n in range(9)], ["a", "b"], None).close()
    octvideo("report", run, "--page", site)
    octvideo("report", run, "--page", site)  # our own is written anew


def test_two_commands_do_not_write_to_one_folder_at_once(octvideo: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", ["gone/1.mp4"])
    pages = TimelinePages(run / "page", ["a.mp4"], ["wave", "sit"], None)
    _, err = octvideo("report", run, "--page", code=2)
    assert "another command writes there now: wait for it, or name another folder" in err
    pages.close()
    octvideo("report", run, "--page")


def test_a_folder_that_can_not_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UserError, match=r"--page .*a: can't make .*a/videos \(Not a directory\)"):
        TimelinePages(tmp_path / "a", ["a.mp4"], ["wave", "sit"], None)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "videos").write_text("a file")
    with pytest.raises(UserError, match=r"can't make .*b/videos \(File exists\)"):
        TimelinePages(tmp_path / "b", ["a.mp4"], ["wave", "sit"], None)
