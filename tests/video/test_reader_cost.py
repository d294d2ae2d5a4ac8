"""What reading does not do: decode what no wanted frame needs, hold frames at full size, or need torchcodec."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

import octvideo.video.decord_reader as decord_reader
import octvideo.video.frames as frames_module
import octvideo.video.pyav_reader as pyav_reader
from octvideo.errors import UserError
from octvideo.video import Decoder, Frames, read_frames, resize_short_side
from tests.video.reference import FILES, every, plainly, torchcodec_reason, wanted

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


# name of a file: how many of its 40 packets frame 35 may need, in groups of 8 or 10.
FEW = {
    "h264 with B-frames.mp4": 4,
    "h264 10 bit.mp4": 40,
    "hevc as x265 writes it.mp4": 10,
    "hevc closed groups.mp4": 10,
    "mpeg4.mp4": 4,
    "mpeg4 with B-frames.mp4": 10,
    "vp9.webm": 4,
    "vp8.webm": 8,
    "av1.mp4": 10,
}


@pytest.mark.parametrize("file", FEW, indirect=True)
def test_pyav_decodes_from_the_keyframe_on_what_a_frame_needs(file: Path, decoded: list[bytes]) -> None:
    expected = plainly(file)
    read = read_frames(file, wanted(35), decoder="pyav")
    assert 1 <= len(decoded) <= FEW[file.name]
    assert torch.equal(read.frames[0], expected[35])


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_pyav_gives_the_same_frames_with_and_without_skipping(file: Path) -> None:
    expected = plainly(file)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        numbers = torch.randperm(40, generator=generator)[: int(torch.randint(1, 6, (), generator=generator))]
        read = read_frames(file, lambda num_frames, numbers=numbers: numbers, decoder="pyav")  # type: ignore[misc]
        assert torch.equal(read.frames[read.places], expected[numbers])


def test_frames_that_nothing_refers_to_are_passed_over(video: Path, decoded: list[bytes]) -> None:
    read_frames(video, wanted(0, 39), decoder="pyav")
    assert len(decoded) < 9  # of the last group those that the last frame needs


def test_times_that_are_not_those_of_display_are_not_trusted(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: list[bytes]
) -> None:
    """AVI stores when frames are decoded: with B-frames another order."""
    path = encode(tmp_path / "b.avi", moving(40, 64, 96), "mpeg4", g=8, bf=2)
    expected = plainly(path)
    for number in (5, 20, 38):
        assert torch.equal(read_frames(path, wanted(number)).frames[0], expected[number])
    assert len(decoded) > 39


def test_a_long_file_is_not_held_in_memory(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plainly(video)
    monkeypatch.setattr("octvideo.video.packets._HELD_BYTES", 1000)
    with pyav_reader.PyavVideo(video, 1) as opened:
        assert opened.packets.held is None
    read = read_frames(video, wanted(3, 39, 20), decoder="pyav")
    assert torch.equal(read.frames, expected[[3, 20, 39]])


# ── resizing while decoding ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 40])
def test_frames_are_reduced_chunk_by_chunk(
    video: Path, decoder: Decoder, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "torchcodec" and (why := torchcodec_reason()):
        pytest.skip(why)
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", chunk * 64 * 96 * 3 + 100)
    expected = resize_short_side(plainly(video), 32)
    sizes = []

    def reduce(frames: Tensor) -> Tensor:
        assert frames.shape[1:] == (64, 96, 3) and frames.dtype == torch.uint8
        sizes.append(len(frames))
        return resize_short_side(frames, 32)

    read = read_frames(video, every, decoder=decoder, resize=reduce)
    assert sum(sizes) == 40 and max(sizes) == chunk
    assert torch.equal(read.frames, expected)
    assert read.frames.stride() == expected.contiguous(memory_format=torch.channels_last).stride()
    same = read_frames(video, wanted(5, 6, 9), decoder=decoder, resize=lambda frames: frames)  # views of full frames
    assert torch.equal(same.frames, plainly(video)[[5, 6, 9]])


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_resize_that_loses_frames_is_a_mistake_of_the_program(video: Path, decoder: Decoder) -> None:
    with pytest.raises(ValueError, match=r"resize: got torch.uint8 \(1, 64, 96, 3\), expected uint8 \(40, ...\)"):
        read_frames(video, every, decoder=decoder, resize=lambda frames: frames[:1])


# ── torchcodec is optional ──────────────────────────────────────────────────────────────────────────────────


def test_torchcodec_that_is_missing(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"'torchcodec', which .*octvideo\[torchcodec\]|'torchcodec', which can't"):
        read_frames(video, every, decoder="torchcodec")


def test_torchcodec_without_ffmpeg(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_libraries(*args: object, **options: object) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly installed")

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=no_libraries))
    with pytest.raises(UserError, match=r"can't be loaded \(Could not load libtorchcodec\.\)\. It needs FFmpeg's"):
        read_frames(video, every, decoder="torchcodec")


@pytest.mark.parametrize("target_fps", [0, -1, float("nan"), 1e9])
def test_rates_that_can_not_be_meant(video: Path, target_fps: float) -> None:
    with pytest.raises(UserError, match=r"target_fps: got .*, expected more than 0 and at most 1000"):
        read_frames(video, every, target_fps=target_fps)


def test_decord_gets_no_frames_that_it_would_have_to_wait_with(
    video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two chunks it decodes ahead without end: a reader is opened anew."""
    opened = []
    read_one = decord_reader._read
    monkeypatch.setattr(decord_reader, "_read", lambda *args: opened.append(1) or read_one(*args))
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", 8 * 3 * 64 * 96)  # eight of the forty frames
    whole = read_frames(video, torch.arange, decoder="pyav").frames

    def read(decoder: Decoder) -> Frames:
        return read_frames(video, torch.arange, decoder=decoder, resize=torch.clone)

    assert read("auto").decoder == "pyav" and not opened and not caplog.records
    by_name = read("decord")
    assert by_name.decoder == "decord" and len(opened) == 5 and torch.equal(by_name.frames, whole)


@pytest.mark.parametrize("name", ["rotation__video_0.mov", "rotation__video_180.mov"])
def test_large_frames_are_resized_one_by_one_to_the_same(
    real_videos: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = real_videos / "odd" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    sizes: list[int] = []

    def small(frames: Tensor) -> Tensor:
        sizes.append(len(frames))
        return resize_short_side(frames, 32)

    gathered = read_frames(path, wanted(0, 1, 2), decoder="pyav", resize=small).frames
    assert sizes == [3]
    monkeypatch.setattr(pyav_reader, "_LONE_BYTES", 1)
    assert torch.equal(read_frames(path, wanted(0, 1, 2), decoder="pyav", resize=small).frames, gathered)
    assert sizes[1:] == ([1, 1, 1] if name == "rotation__video_0.mov" else [3])  # turned ones are copied anyway
