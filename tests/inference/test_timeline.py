"""Timelines: each window's scores are those of a file that holds just its frames, for every kind of network."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.cli import main
from octvideo.errors import UserError
from octvideo.inference import Predictor, Timeline, WindowScores
from octvideo.inference.engines import ENGINES
from octvideo.inference.frame_units import find_frame_units
from octvideo.models import c2d_small, i3d_small, slowfast_small
from octvideo.models.library import FrameNetwork
from octvideo.training.checkpoint_block import make_block
from octvideo.video import FileFrames, FrameSource, VideoReadError, ViewSettings

NAMES = ["up", "down", "to, the side"]
VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)


def image_network() -> nn.Module:
    """Images (N, 3, H, W) to logits (N, 3)."""
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "c2d": lambda: c2d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "i3d": lambda: i3d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "slowfast": lambda: slowfast_small(3, width=8, frame_ratio=2, zero_init_last_norm=False),
    "frames": lambda: FrameNetwork(image_network()),
}
Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


def network_of(name: str) -> nn.Module:
    """A network whose scores of different frames differ well."""
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    (classifier,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    clips = torch.rand(4, 3, 4, 32, 32) * 4 - 2
    with torch.no_grad():
        classifier.weight.normal_()
        classifier.weight.mul_(2 / network(clips).std(0).max())
        classifier.bias.sub_(network(clips).mean(0))
    return network


@functools.cache
def predictor_of(name: str, **how: Any) -> Predictor:
    """Shared by tests, none of which changes it."""
    views = how.pop("views", VIEWS)
    return Predictor(network_of(name), NAMES, views=views, device="cpu", **how)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Noise, of which every frame is another."""
    coarse = torch.rand(27, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56)) * 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def video(frames: Tensor, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lossless(tmp_path_factory.mktemp("timeline") / "whole.mkv", frames, encode)


def lossless(path: Path, frames: Tensor, encode: Encode) -> Path:
    return encode(path, frames, "ffv1", pix_fmt="bgr0", rate=10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [None, False], ids=["shared", "apart"])
def test_a_window_scores_as_a_file_of_its_frames(
    name: str, share: bool | None, frames: Tensor, video: Path, encode: Encode, tmp_path: Path
) -> None:
    predictor = predictor_of(name)
    timeline = Timeline(predictor, window_sec=1.0, stride_sec=0.4, share_frames=share)
    assert (timeline.units is not None) == (name in ("c2d", "frames") and share is None)
    windows = list(timeline.of_video(video))
    assert [(w.first_frame, w.last_frame) for w in windows] == [(0, 9), (4, 13), (8, 17), (12, 21), (16, 25), (17, 26)]
    found = torch.stack([window.scores for window in windows])
    expected = []
    for w in windows:
        cut = lossless(tmp_path / f"{w.index}.mkv", frames[w.first_frame : w.last_frame + 1], encode)
        expected.append(predictor.scores(cut))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert found.std(0).max() > 1e-3  # windows differ


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_every_engine_scores_windows_as_files(
    name: str, engine: str, frames: Tensor, video: Path, encode: Encode, tmp_path: Path
) -> None:
    if ENGINES[engine].library != "torch":
        pytest.importorskip(ENGINES[engine].library)
    predictor = predictor_of(name, engine=engine, precision="f32", views_per_chunk=4)
    windows = list(Timeline(predictor, window_sec=1.0, stride_sec=0.7).of_video(video))
    assert len(windows) == 4
    for w in windows:
        cut = lossless(tmp_path / f"{w.index}.mkv", frames[w.first_frame : w.last_frame + 1], encode)
        torch.testing.assert_close(w.scores, predictor.scores(cut), atol=1e-5, rtol=0)


class Counting:
    """An engine that counts the frames it is given."""

    name, precision, views_per_call = "counting", "f32", None

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self.run, self.frames = run, 0

    def __call__(self, clips: Tensor) -> Tensor:
        self.frames += clips.shape[0] * clips.shape[2]
        return self.run(clips)


@pytest.mark.parametrize("name", ["c2d", "frames"])
def test_frames_that_windows_share_are_computed_once(name: str, video: Path) -> None:
    views = replace(VIEWS, num_clips=1, num_crops=1)
    whole = predictor_of(name, views=views)
    scores, counted = [], []
    for share in (True, False):
        predictor = copy.copy(whole)
        predictor.engine = engine = Counting(whole.engine)
        scores.append(torch.stack([w.scores for w in Timeline(predictor, share_frames=share).of_video(video)]))
        counted.append(engine.frames)
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    # Five windows of 8 frames every 4, whose clips are 4 frames, and a last one beside them.
    assert len(scores[0]) == 6 and counted == [4 + 4 * 2 + 4, 6 * 4]


def test_what_networks_fall_into() -> None:
    def units(network: nn.Module, clip_frames: int) -> tuple[int, list[float]] | None:
        found = find_frame_units(network, clip_frames, 32)
        return found and (found.frames, [round(weight, 4) for weight in found.weights.tolist()])

    assert units(network_of("frames"), 4) == (1, [0.25] * 4)
    assert units(network_of("c2d"), 5) == (2, [0.5, 0.5])
    # The head's mean of four pairs slides over eight.
    assert units(network_of("c2d"), 16) == (2, [0.05, 0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.05])
    assert units(network_of("i3d"), 4) is None and units(network_of("slowfast"), 4) is None

    class Attends(FrameNetwork):
        def forward(self, clips: Tensor) -> Tensor:
            return super().forward(clips + clips.mean((2, 3, 4), keepdim=True))

    assert units(Attends(network_of("frames").image_network), 4) is None  # type: ignore[arg-type]


def test_frames_from_anywhere_score_as_the_file(frames: Tensor, video: Path) -> None:
    predictor = predictor_of("i3d")
    given = ((image, 5 + n / 10) for n, image in enumerate(frames.numpy()))
    found = list(predictor.stream(given, window_sec=1.0, stride_sec=0.4))
    expected = list(Timeline(predictor, 1.0, 0.4).of_video(video))
    assert [w.start_sec for w in found] == pytest.approx([w.start_sec + 5 for w in expected])
    torch.testing.assert_close(torch.stack([w.scores for w in found]), torch.stack([w.scores for w in expected]))
    assert predictor.predict(frames.numpy()).top == predictor.predict(frames).top == predictor.predict(video).top


def test_an_array_is_seen_at_its_own_rate(frames: Tensor, video: Path) -> None:
    predictor = predictor_of("i3d", views=replace(VIEWS, target_fps=5.0))
    of_file = predictor.predict(video).top
    assert predictor.predict(frames, fps=10).top == of_file != predictor.predict(frames, fps=5).top
    for array, fps, message in (
        (frames[0], 10, "array: got shape (40, 56, 3), expected frames (T, H, W, 3)"),
        (frames.float(), 10, "array: got float32 (27, 40, 56, 3), expected RGB, uint8 (..., H, W, 3)"),
        (frames, 0, "array: got fps 0, expected more than 0 and at most 1000"),
        (frames, None, "array: got fps None, expected more than 0 and at most 1000"),
        (frames, float("nan"), "array: got fps nan, expected more than 0 and at most 1000"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            predictor.predict(array, fps=fps)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=re.escape(message)):
            next(predictor.features(array, fps=fps))  # type: ignore[arg-type]


def test_each_window_of_a_stream_comes_when_its_frames_are_there(frames: Tensor) -> None:
    sent: list[int] = []

    def camera() -> Iterator[tuple[Tensor, float]]:
        for n, image in enumerate(frames):
            sent.append(n)
            yield image, n / 10
        raise OSError("unplugged")

    predictor = predictor_of("frames", views_per_chunk=64)
    windows = predictor.stream(camera(), window_sec=1.0, stride_sec=1.0)
    first = next(windows)
    assert first.last_frame == 9 and 10 in sent
    assert [w.index for w in itertools.islice(windows, 1)] == [1]
    with pytest.raises(OSError, match="unplugged"):
        next(windows)
    assert not [thread for thread in threading.enumerate() if thread.name == "octvideo-preparation"]


def test_what_comes_before_a_break_is_scored(video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = video.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content[: len(content) * 2 // 3])
    predictor = predictor_of("frames")
    whole, part = (list(Timeline(predictor, 0.5, 0.5).of_video(path)) for path in (video, cut))
    assert 1 <= len(part) < len(whole)
    torch.testing.assert_close(part[0].scores, whole[0].scores)
    with pytest.raises(VideoReadError, match="no such file"):
        next(Timeline(predictor).of_video(tmp_path / "none.mp4"))


def test_a_timeline_goes_on_after_windows_that_are_known(video: Path) -> None:
    for name in ("frames", "i3d"):
        timeline = Timeline(predictor_of(name), 1.0, 0.4)
        whole = list(timeline.of_video(video))
        rest = list(timeline.of_video(video, skip=3))
        assert [w.index for w in rest] == [3, 4, 5]
        torch.testing.assert_close(rest[0].scores, whole[3].scores)


def test_scores_that_are_not_finite_are_an_error(video: Path) -> None:
    predictor = copy.copy(predictor_of("i3d"))
    predictor.engine = Counting(lambda clips: clips.mean((2, 3, 4)) / 0)
    with pytest.raises(VideoReadError, match="its scores are not finite in precision f32"):
        list(Timeline(predictor).of_video(video))


def test_settings_that_can_not_be_meant() -> None:
    predictor = predictor_of("frames")
    with pytest.raises(UserError, match=re.escape("window_sec: got -1, expected seconds, more than 0")):
        Timeline(predictor, -1)
    with pytest.raises(
        UserError, match=re.escape("views: got clips (3, 8, 32, 32), expected those of the network, (3, 4")
    ):
        Timeline(predictor, views=replace(VIEWS, clip_frames=8))


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = network_of("i3d")
    path = tmp_path_factory.mktemp("runs") / "demo.ckpt"
    block = make_block(network, NAMES, views=VIEWS, mean=(0.45,) * 3, std=(0.225,) * 3)
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "octvideo": block}, path)
    return path


@pytest.fixture
def words(checkpoint: Path, video: Path) -> list[str]:
    how = ["--engine", "eager", "--precision", "f32", "--device", "cpu"]
    return ["timeline", str(video), "--ckpt", str(checkpoint), "--window", "1", "--stride", "0.4", *how]


def test_windows_and_segments_are_written(
    words: list[str], video: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"found.{kind}" for kind in ("json", "csv", "srt", "vtt")]
    windows = tmp_path / "windows.jsonl"
    code = main(
        [*words, "-o", str(windows), "--threshold", "0.3", "--segments", *map(str, files), str(tmp_path / "all")]
    )
    out, err = capsys.readouterr()
    assert code == 0 and out.splitlines()[0] == str(video) and f"6 windows are in {windows}" in err
    made_by, *lines, last = map(json.loads, windows.read_text("ascii").splitlines())
    assert (made_by["engine"], made_by["window"], made_by["views"]) == ("eager", 1.0, VIEWS.as_dict())
    assert [(line["start"], line["end"]) for line in lines][-2:] == [(1.6, 2.6), (1.7, 2.7)]
    assert last == {"path": str(video), "windows": 6, "cuts": [], "trouble": ""}
    expected = list(Timeline(Predictor.from_checkpoint(checkpoint, device="cpu"), 1.0, 0.4).of_video(video))
    for line, window in zip(lines, expected, strict=True):
        found = {one["name"]: one["score"] for one in line["top"]}
        assert [found[name] for name in NAMES] == pytest.approx(window.scores.tolist(), abs=1e-5)
    (content,) = json.loads(files[0].read_text())["videos"]
    assert len(content["segments"]) == len(out.splitlines()) - 1 > 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        f"whole.mkv.{kind}" for kind in ("csv", "json", "srt", "vtt")
    ]
    assert files[1].read_bytes() == (tmp_path / "all" / "whole.mkv.csv").read_bytes()
    assert files[3].read_text("utf-8").startswith("WEBVTT\n\n00:00:0")


def test_a_page_is_made_of_files_alone(
    words: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--page", str(tmp_path / "page"), "-o", str(tmp_path / "windows.jsonl")]) == 0
    assert f"the page is {tmp_path / 'page' / 'index.html'}" in capsys.readouterr().err
    html = (tmp_path / "page" / "index.html").read_text("utf-8")
    assert f"<h1><bdi>{video.name}</bdi></h1>" in html
    (played,) = (tmp_path / "page" / "videos").iterdir()
    assert played.suffix == ".mp4" and f'"videos/{played.name}"' in html
    code = main(["timeline", "rtsp://127.0.0.1:1/x", *words[2:], "--page", str(tmp_path / "other")])
    assert code == 2 and "--page" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_picture_and_an_overlay_are_made_after_the_scores(
    words: list[str], encode: Encode, moving: Moving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = encode(tmp_path / "a.mp4", moving(30, 96, 128))
    picture, overlay = tmp_path / "a.svg", tmp_path / "b.mp4"
    words[1] = str(video)
    assert main([*words, "--threshold", "0.3", "--picture", str(picture), "--overlay", str(overlay)]) == 0
    out, err = capsys.readouterr()
    assert f"the picture is {picture}" in err and f"30 frames with captions are in {overlay}" in err
    assert all(f">{name}<" in picture.read_text("utf-8") for name in NAMES) and out.splitlines()[0] == str(video)
    with FileFrames(video, None) as frames, FileFrames(overlay, None) as new:
        pairs = [(frame.image.float(), other.image.float()) for frame, other in zip(frames, new, strict=True)]
    upper, lower = zip(*((a - b).abs().split(48) for a, b in pairs), strict=True)  # halves of frames
    assert max(half.mean() for half in upper) < 8 and min(half.mean() for half in lower) > 25


def test_a_stopped_timeline_goes_on_and_ends_as_one_that_was_not(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert main([*words, "-o", str(whole), "--segments", str(tmp_path / "whole.csv")]) == 0
    real = Timeline.of_source

    def some(self: Timeline, source: FrameSource, *, skip: int = 0) -> Iterator[WindowScores]:
        yield from itertools.islice(real(self, source, skip=skip), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Timeline, "of_source", some)
        assert main([*words, "-o", str(parts)]) == 130
    assert "stopped: scores that go into a file (-o) are kept" in capsys.readouterr().err
    with parts.open("a") as file:
        file.write('{"path": "')  # as a kill leaves it
    assert main([*words, "-o", str(parts), "--segments", str(tmp_path / "parts.csv")]) == 0
    assert f"2 windows are in {parts} already" in capsys.readouterr().err
    assert parts.read_text() == whole.read_text()
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert main([*words, "-o", str(parts)]) == 0 and parts.read_text() == whole.read_text()
    capsys.readouterr()
    assert main([*words, "-o", str(parts), "--threshold", "1"]) == 0
    _, *lines, _ = map(json.loads, whole.read_text().splitlines())
    highest = max((one["score"], one["name"]) for line in lines for one in line["top"])
    assert f"\n  no segments: the highest score is {highest[0]:.2g} ({highest[1]})\n" in capsys.readouterr().out
    assert main([*words, "-o", str(parts), "--window", "2"]) == 2
    assert "is of another model, or of other settings (window: 1.0, now 2.0)" in capsys.readouterr().err


def test_a_film_that_was_not_whole_is_tried_again_from_its_beginning(
    words: list[str], frames: Tensor, encode: Encode, tmp_path: Path
) -> None:
    film, tried, fresh = tmp_path / "film.mp4", tmp_path / "tried.jsonl", tmp_path / "fresh.jsonl"
    content = encode(tmp_path / "whole.mp4", frames, rate=10, g=4, movflags="faststart").read_bytes()
    film.write_bytes(content[: len(content) * 2 // 3])
    words[1] = str(film)
    assert main([*words, "-o", str(tried)]) == 1
    before = tried.read_text()
    assert main([*words, "-o", str(tried), "--retry"]) == 1 and main([*words, "-o", str(tried)]) == 1
    _, *lines = before.splitlines()
    assert tried.read_text().splitlines()[1:] == [*lines, *lines]
    film.write_bytes(content)
    assert main([*words, "-o", str(tried), "--retry", "--segments", str(tmp_path / "tried.csv")]) == 0
    assert main([*words, "-o", str(fresh), "--segments", str(tmp_path / "fresh.csv")]) == 0
    assert (tmp_path / "tried.csv").read_text() == (tmp_path / "fresh.csv").read_text()
    assert main(["join", str(tried), "-o", str(tmp_path / "joined.jsonl")]) == 0
    assert (tmp_path / "joined.jsonl").read_text() == fresh.read_text()


def test_videos_that_can_not_be_read_are_told_and_the_others_are_done(
    words: list[str], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, cut = tmp_path / "broken.mp4", tmp_path / "cut.mkv"
    broken.write_bytes(b"not a video")
    cut.write_bytes(video.read_bytes())
    other, found = tmp_path / "other" / "cut.mkv", tmp_path / "found"
    other.parent.mkdir()
    other.write_bytes(video.read_bytes())
    segments = ["--segments", str(found), "--classes", "up", "--threshold", "0.01"]
    assert main([*words[:2], str(tmp_path), *words[2:], *segments]) == 1
    assert {path.name for path in found.glob("*.srt")} == {
        f"{name}.srt" for name in ("whole.mkv", "broken.mp4", "cut.mkv", "cut.mkv.2")
    }
    out, err = capsys.readouterr()
    assert f"error: cannot read video '{broken}'" in err and err.count("error:") == 1
    assert out.count("up") >= 2 and "down" not in out and str(cut) in out and str(broken) not in out


def test_a_folder_that_can_not_be_written_is_told_before_the_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)  # root may write everywhere
    for name in (tmp_path / "found.csv", tmp_path / "found"):
        assert main([*words, "--segments", str(name)]) == 2
        out, err = capsys.readouterr()
        assert not out and err.splitlines()[-1].startswith(f"error: --segments: can't write into {tmp_path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "2"], "--threshold 2: got 2, expected 0 to 1"),
        (["--threshold", "upp=0.5"], "--threshold: 'upp' is no known class, did you mean 'up'?"),
        (["--classes", "left"], "--classes: 'left' is no known class"),
        (["--output", "-"], "-o/--output: got -, expected the path of a file or folder"),
        (["--leave", "0.9"], "leave: got 0.9, expected more than 0 and at most the threshold, 0.5"),
        (["--window", "0"], "--window: got 0, expected more than 0"),
        (["--num_crops", "2"], "num_crops: got 2, expected 1 (centre) or 3"),
        (["--segments", "a.txt"], "--segments a.txt: got .txt, expected .json, .csv, .srt, .vtt, or a folder"),
        (["--segments", "none/a.csv"], "--segments none/a.csv: no folder none"),
        (["--picture", "a.jpg"], "picture a.jpg: got .jpg, expected .png or .svg"),
        (["--overlay", "a.avi"], "overlay a.avi: got .avi, expected .mp4, .m4v, .mov, .mkv"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *options]) == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith(f"error: {message}")
    assert err.count("error:") == 1
