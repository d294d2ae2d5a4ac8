"""Streams: each run scores as a file of its frames, the newest windows win, and nothing grows in a day."""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import octvideo.cli.live as cli_live
from octvideo.cli import main
from octvideo.inference import Timeline
from octvideo.inference.live import LiveCounts, LiveWindow, live_windows
from octvideo.inference.live_segments import LiveSegments
from octvideo.inference.segments import SegmentSettings
from octvideo.inference.timeline import WindowScores
from octvideo.video import LiveFrames
from octvideo.video.live import Arrival
from tests.inference.test_timeline import NAMES, VIEWS, Counting, network_of, predictor_of
from tests.video.servers import HttpServer, http_server
from tests.video.test_live import FakeConnection, FakeWatch

from octvideo.training.checkpoint_block import make_block  # isort: skip

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


class Camera(FakeConnection):
    """Frames at times, each when it is due."""

    def __init__(self, watch: FakeWatch, frames: list[tuple[Tensor, float]], *, has_end: bool = True) -> None:
        super().__init__(watch, [], has_end=has_end)
        self._frames = frames

    def __iter__(self) -> Iterator[Arrival | None]:
        for image, time in self._frames:
            self._watch.now = max(self._watch.now, 100 + time)
            yield Arrival(time, self._watch.now, self._watch.wall(), image.numpy)


def live_of(watch: FakeWatch, *cameras: Camera, **settings: Any) -> LiveFrames:
    left = list(cameras)
    how = {"connect": lambda: left.pop(0), "watch": watch, "beside": False, "say": lambda line: None}
    return LiveFrames("rtsp://cam", VIEWS.short_side_px, **{**how, **settings})


@pytest.mark.parametrize("name", ["frames", "i3d"])
def test_each_run_scores_as_a_file_of_its_frames(name: str, moving: Moving) -> None:
    predictor, frames, watch = predictor_of(name), moving(47, 40, 56), FakeWatch()
    of_runs = [[(frames[n], n / 10) for n in range(27)], [(frames[n], n / 10) for n in range(27, 47)]]
    cameras = [Camera(watch, of_runs[0], has_end=False), Camera(watch, of_runs[1])]
    timeline, counts = Timeline(predictor, 1.0, 0.4), LiveCounts()
    with live_of(watch, *cameras) as live:
        found = list(live_windows(timeline, live, counts))
    expected = [list(timeline.of_frames(((image, t) for image, t in run), rate=10)) for run in of_runs]
    assert [w.begins for w in found] == [n == 0 for run in expected for n in range(len(run))]
    torch.testing.assert_close(
        torch.stack([w.scores.scores for w in found]), torch.stack([w.scores for run in expected for w in run])
    )
    assert [w.scores.start_sec for w in found[: len(expected[0])]] == [w.start_sec for w in expected[0]]
    assert found[-1].scores.start_sec > 2.7 > found[len(expected[0]) - 1].scores.start_sec
    assert found[0].wall == 1_800_000_100 and (counts.windows, counts.skipped) == (len(found), 0)
    # The frame after a window tells that it is whole.
    assert found[0].latency_sec == pytest.approx(0.1) and counts.latency_most >= found[0].latency_sec
    assert counts.in_words(live).endswith("0 windows skipped, 0 of 47 frames dropped; the connection was cut 1 times")


def test_a_slow_network_sees_the_newest_windows(moving: Moving) -> None:
    watch = FakeWatch()
    frames = [(image, n / 10) for n, image in enumerate(moving(40, 40, 56).repeat(3, 1, 1, 1))]
    predictor = copy.copy(predictor_of("i3d", views=replace(VIEWS, num_clips=1, num_crops=1)))
    engine, counts = predictor.engine, LiveCounts()

    def slow(clips: Tensor) -> Tensor:
        for _ in range(23):  # frames come meanwhile
            next(live.steps, None)
        return engine(clips)

    predictor.engine = Counting(slow)
    with live_of(watch, Camera(watch, frames)) as live:
        found = list(live_windows(Timeline(predictor, 1.0, 0.5), live, counts))
        assert all(w.latency_sec <= 2.3 + 0.5 + 0.1 for w in found)
    starts = [w.scores.start_sec for w in found]
    assert starts[:3] == [0, 2.0, 4.5] and [w.num_skipped for w in found[:3]] == [0, 3, 4]
    whole = len(list(Timeline(predictor_of("i3d"), 1.0, 0.5).of_frames(frames)))
    assert counts.windows + counts.skipped == whole and live.queue.num_dropped == 0


class Bursts(Camera):
    """Four seconds of frames at once, as HLS brings them."""

    next_due = 104.0

    def __iter__(self) -> Iterator[Arrival | None]:
        for n, (image, time) in enumerate(self._frames):
            self._watch.now = max(self._watch.now, self.next_due)
            self.next_due = 104.0 + 4 * ((n + 1) // 40)
            yield Arrival(time, self._watch.now, self._watch.wall(), image.numpy)


def test_no_window_of_a_burst_is_passed_over_by_a_network_that_is_fast_enough(moving: Moving) -> None:
    watch, counts = FakeWatch(), LiveCounts()
    frames = [(image, n / 10) for n, image in enumerate(moving(40, 40, 56).repeat(2, 1, 1, 1))]
    predictor = copy.copy(predictor_of("i3d", views=replace(VIEWS, num_clips=1, num_crops=1)))
    engine, camera = predictor.engine, Bursts(watch, frames)

    def quick(clips: Tensor) -> Tensor:
        while camera.next_due <= watch.now and next(live.steps, "over") != "over":
            pass
        watch.now += 0.4
        return engine(clips)

    predictor.engine = Counting(quick)
    with live_of(watch, camera) as live:
        list(live_windows(Timeline(predictor, 1.0, 0.5), live, counts))
    assert (counts.windows, counts.skipped) == (15, 0) and counts.latency_most < 4.5


def test_frames_that_nobody_takes_are_dropped_and_no_window_spans_them(moving: Moving) -> None:
    watch = FakeWatch()
    frames = [(image, n / 10) for n, image in enumerate(moving(40, 40, 56).repeat(2, 1, 1, 1))]
    predictor = copy.copy(predictor_of("frames"))
    engine = predictor.engine

    def slow(clips: Tensor) -> Tensor:
        for _ in range(30):
            next(live.steps, None)
        return engine(clips)

    predictor.engine = Counting(slow)
    with live_of(watch, Camera(watch, frames), keep_sec=1.45) as live:
        found = list(live_windows(Timeline(predictor, 1.0, 0.5), live))
        assert live.queue.num_dropped > 20
    assert len(found) >= 3 and [w.begins for w in found][:2] == [True, True]
    assert all(w.scores.last_frame - w.scores.first_frame == 9 for w in found)


def test_a_day_of_a_camera_takes_no_memory() -> None:
    """24 hours on the clock of the test, a frame each 20 seconds, with a cut every two hours."""
    watch, image = FakeWatch(), torch.zeros(32, 32, 3, dtype=torch.uint8)
    views = replace(VIEWS, clip_frames=2, frame_stride=1, num_clips=1, num_crops=1)
    predictor = copy.copy(predictor_of("frames", views=views))
    predictor.engine = Counting(lambda clips: clips.mean((2, 3, 4)))
    cameras = [Camera(watch, [(image, 7200.0 * c + 20.0 * n) for n in range(360)], has_end=c == 11) for c in range(12)]
    segments, counts = LiveSegments(SegmentSettings(0.9, smooth_sec=900.0, join_sec=600.0), 3), LiveCounts()
    objects: list[int] = []
    with live_of(watch, *cameras) as live:
        for n, window in enumerate(live_windows(Timeline(predictor, 400.0, 360.0, share_frames=False), live, counts)):
            score = np.full(3, float(n // 7 % 2))
            segments.add(window.scores.start_sec, window.scores.end_sec, score, after_gap=window.begins)
            assert len(live.queue) <= 2
            if n % 60 == 59:
                gc.collect()
                objects.append(len(gc.get_objects()))
    assert counts.windows >= 240 and live.num_frames == 4320 and live.num_disconnects == 11
    assert live.newest_sec == pytest.approx(86_380, abs=60)
    assert max(objects[1:]) - min(objects[1:]) < 500 and len(objects) == 4


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, encode: Encode, moving: Moving) -> Path:
    return encode(tmp_path_factory.mktemp("served") / "a.ts", moving(40, 48, 64), g=10, bf=0)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server() as server:
        yield server


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    network = network_of("i3d")
    path = tmp_path_factory.mktemp("runs") / "demo.ckpt"
    block = make_block(network, NAMES, views=VIEWS, mean=(0.45,) * 3, std=(0.225,) * 3)
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "octvideo": block}, path)
    how = ["--engine", "eager", "--precision", "f32", "--device", "cpu", "--threshold", "0.3", "--timeout", "10"]
    return ["--ckpt", str(path), "--window", "1", "--stride", "0.5", *how]


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("ascii").splitlines()]


def test_a_stream_is_written_line_by_line(
    server: HttpServer, served: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces, out, table = [served.read_bytes()] * 2, tmp_path / "live.jsonl", tmp_path / "found.csv"

    def once(write: Callable[[bytes], object]) -> None:
        if pieces:  # for the look whether it is a stream, and for reading
            write(pieces.pop())

    server.contents["live"] = once
    url, name = server.url("live", "me:pw@"), server.url("live", "***@")
    how = ["-o", str(out), "--segments", str(table), "--give_up_after", "0.2", "--reconnect_max", "0.05"]
    assert main(["timeline", url, *words, *how]) == 1
    said, err = capsys.readouterr()
    assert f"error: cannot read video '{name}': no frame for 0 s, given up: " in err
    assert f"{name}: the connection was cut; connecting again in 0.0 s" in err
    made_by, started, *rest, ended = lines_of(out)
    assert made_by["results"] == "octvideo timeline, live 1" and "started" in started
    windows, segments = ([line for line in rest if key in line] for key in ("top", "segment"))
    assert windows and segments and all(line["at"].endswith("Z") and line["latency_sec"] >= 0 for line in windows)
    assert ended["windows"] == len(windows) and ended["frames"] == 40 and "given up" in ended["trouble"]
    assert said.splitlines()[0] == name and len(said.splitlines()) == 1 + len(segments)
    assert len(table.read_text().splitlines()) == 1 + len(segments)
    for text in (said, err, out.read_text(), table.read_text()):
        assert "pw" not in text
    assert f"{len(windows)} windows scored, latency " in err


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_stopped_stream_has_everything_written(
    how: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(timeline: Timeline, live: LiveFrames, counts: LiveCounts) -> Iterator[LiveWindow]:
        scores = torch.tensor([0.9, 0.05, 0.05])
        counts.windows += 1
        yield LiveWindow(WindowScores(0, 0.0, 1.0, 0, 9, scores), 1_800_000_000.0, 0.25, 0, True)
        if how == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        yield from ()

    monkeypatch.setattr(cli_live, "live_windows", some)
    before, out = signal.getsignal(signal.SIGTERM), tmp_path / "live.jsonl"
    files = [tmp_path / name for name in ("a.json", "a.srt", "a.vtt", "folder/x.srt")]
    names = [str(file) for file in files[:3]] + [str(tmp_path / "folder")]
    code = main(["timeline", "rtsp://127.0.0.1:1/x", *words, "-o", str(out), "--segments", *names])
    said, err = capsys.readouterr()
    assert code == (130 if how == "Ctrl-C" else 143) and signal.getsignal(signal.SIGTERM) is before
    assert "stopped: all windows and segments until now are written" in err
    *_, window, segment, ended = lines_of(out)
    assert window["at"] == "2027-01-15T08:00:00.000Z" and window["latency_sec"] == 0.25
    assert segment["segment"] == {"start": 0.0, "end": 1.0, "at": window["at"], "class": NAMES[0], "score": 0.9}
    assert ended["trouble"] == "stopped" and "up" in said
    assert json.loads(files[0].read_text())["videos"][0]["segments"][0]["end"] == 1.0
    assert all("00:01" in file.read_text() and f"{NAMES[0]} 90 %" in file.read_text() for file in files[1:])


def test_a_file_on_the_net_is_as_one_here(
    server: HttpServer, served: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.contents["a.ts"] = served.read_bytes()
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert main(["timeline", str(served), *words, "-o", str(here)]) == 0
    assert main(["timeline", server.url("a.ts", "me:pw@"), *words, "-o", str(there)]) == 0
    masked = server.url("a.ts", "***@")
    assert there.read_text().replace(masked, str(served)) == here.read_text() and "pw" not in there.read_text()
    later = tmp_path / "later.jsonl"
    both = ["timeline", str(served), server.url("b.ts"), *words, "-o", str(later)]
    assert main(both) == 1 and "b.ts" not in later.read_text()
    server.contents["b.ts"] = served.read_bytes()
    assert main(both) == 0 and lines_of(later)[-1]["path"] == server.url("b.ts")  # tried again
    capsys.readouterr()
    assert main(["timeline", server.url("a.ts"), "rtsp://cam/1", *words]) == 2
    assert "error: rtsp://cam/1 has no end: give a command of its own to it" in capsys.readouterr().err
    assert main(["timeline", server.url("none.mp4"), *words]) == 2
    assert "Server returned 404 Not Found" in capsys.readouterr().err
    for options, message in {
        ("--until", "2020-01-01T00:00"): "--until: got 2020-01-01T00:00, which has been",
        ("--until", "noon"): "--until: got noon, expected 18:30 or 2030-12-31T18:30",
        ("--overlay", "a.mp4"): "--overlay a.mp4: of files on this machine alone, got rtsp://127.0.0.1:1/x",
        ("--picture", "a.png"): "--picture a.png: a stream has no end; draw one of a file",
        ("--segments", "a.txt"): "--segments a.txt: got .txt, expected .json, .csv, .srt, .vtt, or a folder",
    }.items():
        assert main(["timeline", "rtsp://127.0.0.1:1/x", *words, *options]) == 2
        assert message in capsys.readouterr().err
