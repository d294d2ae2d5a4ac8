"""All views at once against one view after the other, cut frame by frame."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import octvideo.video.frames as frames_module
import octvideo.video.views as views_module
from octvideo.errors import UserError
from octvideo.video import Decoder, ShortVideo, VideoReadError, ViewSettings, decode_views, read_frames, read_views
from octvideo.video.transforms import resize_short_side

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, encode: Encode, moving: Moving) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("views")
    return {
        "wide": encode(folder / "wide.mp4", moving(30, 48, 80), g=8),
        "high": encode(folder / "high.mp4", moving(30, 80, 48), g=8),
        "short": encode(folder / "short.mp4", moving(5, 48, 80), g=8),
    }


@cache
def all_frames(path: Path) -> Tensor:
    return read_frames(path, lambda num_frames: torch.arange(num_frames), decoder="pyav").frames


def one_view(path: Path, settings: ViewSettings, clip: int, crop: int) -> Tensor:
    """The reference: one view by itself, frame by frame, (C, T, S, S)."""
    num_frames = len(all_frames(path))
    span = (settings.clip_frames - 1) * settings.frame_stride + 1
    spare = max(num_frames - span, 0)
    start = spare // 2 if settings.num_clips == 1 else spare * clip // (settings.num_clips - 1)
    frames = []
    for t in range(settings.clip_frames):
        number = start + t * settings.frame_stride
        number = number % num_frames if settings.short_video == "loop" else min(number, num_frames - 1)
        (small,) = resize_short_side(all_frames(path)[[number]], settings.short_side_px)  # (C,h,w)
        size = settings.crop_px
        rooms = [side - size for side in small.shape[1:]]
        along = 1 if rooms[1] >= rooms[0] else 0
        at = [room // 2 for room in rooms]
        if settings.num_crops == 3:
            at[along] = (0, rooms[along] // 2, rooms[along])[crop]
        frames.append(small[:, at[0] : at[0] + size, at[1] : at[1] + size])
    return torch.stack(frames, 1)


@pytest.mark.parametrize("kind", ["wide", "high", "short"])
@pytest.mark.parametrize(("num_clips", "num_crops"), [(3, 3), (1, 1), (4, 1), (1, 3)])
@pytest.mark.parametrize("crop_px", [32, 24])
def test_views_are_those_of_one_view_after_the_other(
    videos: dict[str, Path], kind: str, num_clips: int, num_crops: int, crop_px: int
) -> None:
    settings = ViewSettings(
        clip_frames=4,
        frame_stride=3,
        num_clips=num_clips,
        num_crops=num_crops,
        short_side_px=32,
        crop_px=crop_px,
        short_video="loop" if num_crops == 1 else "repeat_last",
    )
    views = read_views(videos[kind], settings)
    assert views.dtype == torch.uint8
    assert views.shape == (num_clips * num_crops, 3, 4, crop_px, crop_px) == (settings.num_views, *views.shape[1:])
    for clip in range(num_clips):
        for crop in range(num_crops):
            assert torch.equal(views[clip * num_crops + crop], one_view(videos[kind], settings, clip, crop)), (
                clip,
                crop,
            )


def test_views_are_channels_last_in_memory(videos: dict[str, Path]) -> None:
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, short_side_px=32, crop_px=32)
    views = read_views(videos["wide"], settings)
    assert views.is_contiguous(memory_format=torch.channels_last_3d)
    assert views.untyped_storage().nbytes() == views.numel()  # nothing else is kept alive with them


def test_some_views_are_the_same_as_among_all(videos: dict[str, Path]) -> None:
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=3, short_side_px=32, crop_px=24)
    views = decode_views(videos["high"], settings)
    assert views.num_views == settings.num_views == 9
    whole = read_views(videos["high"], settings)
    for start, stop in [(0, 9), (0, 1), (2, 7), (8, 9), (4, 100), (4, None)]:
        some = views.cut(start, stop)
        assert torch.equal(some, whole[start:stop]) and some.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_video_is_opened_once_and_each_frame_asked_for_once(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def spy(*args: object, **kwargs: object) -> object:
        reads.append(read_frames(*args, **kwargs))  # type: ignore[arg-type]
        return reads[-1]

    monkeypatch.setattr(views_module, "read_frames", spy)
    read_views(videos["wide"], ViewSettings(clip_frames=4, frame_stride=2, num_clips=10, short_side_px=32, crop_px=32))
    assert len(reads) == 1
    assert len(reads[0].frames) == len(torch.unique(reads[0].places)) <= 30


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_full_size_frames_are_held_in_chunks(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, decoder: Decoder
) -> None:
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=5, short_side_px=32, crop_px=32)
    expected = read_views(videos["wide"], settings, decoder=decoder)
    held: list[int] = []

    def spy(frames: Tensor, short_side_px: int) -> Tensor:
        held.append(len(frames))
        return resize_short_side(frames, short_side_px)

    monkeypatch.setattr(views_module, "resize_short_side", spy)
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", 3 * 48 * 80 * 3)
    assert torch.equal(read_views(videos["wide"], settings, decoder=decoder), expected)
    assert max(held) <= 3 and sum(held) > 10


_PEAK = """
import sys, threading, time
from octvideo.data import Augmentation, EvaluationVideos, TrainingClips, VideoRecord
from octvideo.video import ViewSettings
views = ViewSettings(num_clips=10, frame_stride=2)
peak = 0
def watch():  # not ru_maxrss, which starts at what the parent process holds
    global peak
    while True:
        peak = max(peak, 4096 * int(open("/proc/self/statm").read().split()[1]))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
for path in sys.argv[1:3]:
    time.sleep(0.1)
    before = peak
    records = [VideoRecord(path, 0)]
    EvaluationVideos(records, views, decoder=sys.argv[3])[0]
    TrainingClips(records, Augmentation(), clip_frames=32, frame_stride=1, decoder=sys.argv[3])[0, 0]
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="looks at memory in Linux's /proc")
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_4k_video_is_never_whole_in_memory(tmp_path: Path, encode: Encode, moving: Moving, decoder: Decoder) -> None:
    """32 distinct frames are 796 MB at full size."""
    first = encode(tmp_path / "small.mp4", moving(32, 48, 80), g=8)
    large = encode(tmp_path / "4k.mp4", moving(4, 2160, 3840).repeat(8, 1, 1, 1), g=8, preset="ultrafast")
    program = [sys.executable, "-c", _PEAK, str(first), str(large), decoder]
    grown = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    print(decoder, grown // 10**6)
    assert 10 * 10**6 < grown < 500 * 10**6  # decoders hold a dozen frames of their own


def test_a_video_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such file"):
        read_views(tmp_path / "missing.mp4", ViewSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_frames": 0}, "clip_frames: got 0, expected 1 or more"),
        ({"frame_stride": -1}, "frame_stride: got -1, expected 1 or more"),
        ({"num_clips": 0}, "num_clips: got 0, expected 1 or more"),
        ({"short_side_px": 0}, "short_side_px: got 0, expected 1 or more"),
        ({"num_crops": 2}, r"num_crops: got 2, expected 1 \(centre\) or 3 \(along the longer side\)"),
        ({"crop_px": 257}, r"crop_px: got 257, expected at most short_side_px \(256\)"),
        ({"short_video": "mirror"}, "short_video: got 'mirror', expected 'repeat_last' or 'loop'"),
    ],
)
def test_settings_that_cannot_be_meant(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViewSettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("short_video", ["repeat_last", "loop"])
def test_settings_survive_a_checkpoint(short_video: ShortVideo) -> None:
    settings = ViewSettings(clip_frames=16, num_clips=4, num_crops=1, crop_px=224, short_video=short_video)
    values = settings.as_dict()
    assert all(type(value) in (int, str) for value in values.values())
    assert ViewSettings.from_dict(values) == settings
    assert ViewSettings.from_dict({}) == ViewSettings()


def test_settings_of_a_newer_version() -> None:
    with pytest.raises(UserError, match="view settings: got unknown fps, tilt; a newer octvideo may have written them"):
        ViewSettings.from_dict(ViewSettings().as_dict() | {"tilt": 3, "fps": 30})


def test_views_by_time(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    """At half its own rate, a video has the views of every second frame."""
    path = encode(tmp_path / "20 per second.mp4", moving(40, 48, 80), rate=20, g=8)
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=3, short_side_px=32, crop_px=32, target_fps=10)
    every_second = read_frames(path, lambda num_frames: torch.arange(0, 40, 2)).frames
    halved = encode(tmp_path / "halved.mkv", every_second, "ffv1", pix_fmt="bgr0")  # without loss
    by_frames = replace(settings, target_fps=None)
    expected = read_views(halved, by_frames)
    assert torch.equal(read_views(path, settings), expected)
    assert not torch.equal(read_views(path, by_frames), expected)
    assert ViewSettings.from_dict(settings.as_dict()) == settings
    assert "target_fps" not in by_frames.as_dict() and ViewSettings.from_dict(by_frames.as_dict()) == by_frames
    with pytest.raises(UserError, match="target_fps: got 0, expected more than 0"):
        replace(settings, target_fps=0)
