"""Files that are damaged, cut off or no videos: what there is comes, and what is wrong is said in one line."""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import octvideo.video.decord_reader as decord_reader
import octvideo.video.pyav_reader as pyav_reader
from lab.fuzzing import damage
from octvideo.errors import UserError
from octvideo.video import Decoder, VideoBytes, VideoReadError, read_frames
from octvideo.video.checking import check_video
from octvideo.video.frames import ReaderFailure
from tests.video.reference import every, plainly

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


# ── files that are not whole ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_truncated_file_gives_its_intact_frames_and_says_so(
    tmp_path: Path, video: Path, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    frames = plainly(video)
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    asked: list[int] = []

    def ends(num_frames: int) -> Tensor:
        asked.append(num_frames)
        return torch.tensor([0, num_frames - 1])

    read = read_frames(path, ends, decoder=decoder)
    assert 5 < read.num_frames < 40 and read.decoder == "pyav"
    assert torch.equal(read.frames, frames[[0, read.num_frames - 1]])
    assert asked == sorted(asked, reverse=True) and asked[-1] == read.num_frames
    said = f"{path}: only {read.num_frames} of its 40 frames can be read"
    assert said in [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert torch.equal(read_frames(path, every, decoder=decoder).frames, frames[: read.num_frames])


def test_rotten_packets_leave_the_frames_around_them(
    tmp_path: Path, encode: Encode, moving: Moving, caplog: pytest.LogCaptureFixture
) -> None:
    """Intra-only, so that each packet is one frame: three of them are overwritten."""
    path = encode(tmp_path / "rotten.mkv", moving(20, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    frames = plainly(path)
    rot(path, [4, 5, 11])
    read = read_frames(path, every)
    intact = [number for number in range(20) if number not in (4, 5, 11)]
    assert read.num_frames == 17 and torch.equal(read.frames, frames[intact])
    assert f"{path}: only 17 of its 20 frames can be read" in [record.getMessage() for record in caplog.records]


def with_empty_packets(source: Path, target: Path, before: list[int]) -> Path:
    """An AVI with packets of size 0 before those of these numbers, as tools write where a frame stays."""
    content = source.read_bytes()
    movi, index = content.index(b"movi") - 8, content.rindex(b"idx1")
    chunks, entries, place = b"movi", b"", movi + 12
    for number in range(len(content)):
        empty = b"00dc" + bytes(4)
        for _ in range(before.count(number)):
            entries += b"00dc" + struct.pack("<III", 0, len(chunks), 0)
            chunks += empty
        if place >= index or content[place : place + 4] != b"00dc":
            break
        (size,) = struct.unpack("<I", content[place + 4 : place + 8])
        entries += b"00dc" + struct.pack("<III", 16, len(chunks), size)
        chunks += content[place : place + 8 + size + size % 2]
        place += 8 + size + size % 2
    head = bytearray(content[:movi])
    total = struct.pack("<I", number + len(before))
    head[48:52] = total  # avih: frames
    at = head.index(b"strh") + 8 + 32
    head[at : at + 4] = total  # strh: length
    body = bytes(head[8:]) + b"LIST" + struct.pack("<I", len(chunks)) + chunks
    body += b"idx1" + struct.pack("<I", len(entries)) + entries
    target.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return target


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("before", [[5, 5, 11], [20], [1, 20, 20]])
def test_empty_packets_are_no_damage(
    tmp_path: Path, encode: Encode, moving: Moving, caplog: pytest.LogCaptureFixture, codec: str, before: list[int]
) -> None:
    plain = encode(tmp_path / "plain.avi", moving(20, 64, 96), codec)
    path = with_empty_packets(plain, tmp_path / "empty.avi", before)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20 + len(before)
    for source in (path, VideoBytes("empty.avi", path.read_bytes())):
        read = read_frames(source, every)
        assert (read.num_frames, read.num_missing) == (20, 0) and torch.equal(read.frames, plainly(plain))
    check = check_video(("empty.avi", str(path), "auto"), lambda *_: None)
    assert (check.verdict, check.num_frames, check.num_announced, check.reason) == ("ok", 20, 20, "")
    assert not caplog.records


def test_damage_beside_empty_packets_is_told(
    tmp_path: Path, encode: Encode, moving: Moving, caplog: pytest.LogCaptureFixture
) -> None:
    plain = encode(tmp_path / "plain.avi", moving(20, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    path = with_empty_packets(plain, tmp_path / "empty.avi", [5, 20])
    rot(path, [7])
    assert (read_frames(path, every).num_frames, read_frames(path, every).num_missing) == (19, 1)
    assert {record.getMessage() for record in caplog.records} == {f"{path}: only 19 of its 20 frames can be read"}
    content = with_empty_packets(plain, tmp_path / "whole.avi", [5, 20]).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 3 // 4])  # its index is lost too
    cut = read_frames(tmp_path / "cut.avi", every)
    assert 5 < cut.num_frames < 20 and cut.num_frames + cut.num_missing == 22


def test_frames_chosen_again_are_those_of_the_frames_that_came(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "rotten.mkv", moving(20, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    frames = plainly(path)
    rot(path, [4, 5, 11])
    asked: list[int] = []

    def one_that_is_lost(num_frames: int) -> Tensor:
        asked.append(num_frames)
        return torch.tensor([11, 19]) if num_frames == 20 else torch.tensor([8, 16])

    read = read_frames(path, one_that_is_lost, decoder="pyav")
    assert asked == [20, 17] and torch.equal(read.frames, frames[[10, 19]])


@pytest.mark.parametrize("file", ["av1.mp4"], indirect=True)
def test_of_damaged_av1_only_groups_of_wanted_frames_are_decoded(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = plainly(file)
    path = tmp_path / "rotten.mp4"
    path.write_bytes(file.read_bytes())
    with av.open(str(path)) as container:
        keys = [place for place, packet in enumerate(container.demux(video=0)) if packet.size and packet.is_keyframe]
    assert len(keys) >= 4 and keys[2] - keys[1] >= 6
    rot(path, [keys[1] + 3])
    numbers: list[int] = []
    real = pyav_reader.decoded_frames
    monkeypatch.setattr(pyav_reader, "decoded_frames", lambda packet: numbers.append(packet.pts) or real(packet))
    whole = read_frames(path, every)
    there = [n for n in range(40) if any(torch.equal(frames[n], frame) for frame in whole.frames)]
    lost = sorted(set(range(40)) - set(there))
    assert len(there) == whole.num_frames < 40 and keys[1] < lost[0] and lost[-1] < keys[2]
    assert torch.equal(whole.frames, frames[there])

    numbers.clear()
    assert read_frames(path, lambda count: torch.tensor([count - 1])).num_frames == 40  # nobody looked
    assert len(numbers) <= 10
    numbers.clear()
    read = read_frames(path, lambda count: torch.tensor([0, lost[0], count - 1]))
    assert read.num_frames == len(there) and torch.equal(read.frames, frames[[there[n] for n in (0, lost[0], -1)]])
    assert len(numbers) < 60  # three groups of ten, twice

    monkeypatch.setattr(pyav_reader, "_MAX_LOOKS", 0)  # then all are counted
    again = read_frames(path, lambda count: torch.tensor([0, lost[0], count - 1]))
    assert again.num_frames == read.num_frames and torch.equal(again.frames, read.frames)


@pytest.mark.parametrize("file", ["h264 with B-frames.mp4"], indirect=True)
def test_a_cut_file_is_decoded_from_the_keyframe_on_too(tmp_path: Path, file: Path, decoded: list[bytes]) -> None:
    """Tables in front; what is cut off lies behind the frame that is wanted."""
    path = tmp_path / "cut.mp4"
    path.write_bytes(file.read_bytes()[: file.stat().st_size * 9 // 10])
    read = read_frames(path, lambda count: torch.tensor([18]))
    assert 20 < read.num_frames < 40 and read.num_missing == 40 - read.num_frames
    assert len(decoded) <= 10 and torch.equal(read.frames[0], plainly(file)[18])


def test_times_that_no_packet_has_are_not_looked_for(tmp_path: Path, real_videos: Path) -> None:
    """FFmpeg guesses the times of some fields of this damaged file."""
    video = real_videos / "odd/interlaced__Sony_ILCE-7M3_(A7M3).mts"
    if not video.exists():
        pytest.skip(f"no {video}")
    content, suffix, done = damage(video.read_bytes(), b"", video.suffix, seed=11, number=215)
    assert done == "142 bits flipped"
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    read = read_frames(path, lambda count: torch.linspace(0, count - 1, 30).long())
    assert 1 < len(read.frames) == read.num_frames < 20


def test_a_file_that_would_hold_decord_for_good(tmp_path: Path, real_videos: Path) -> None:
    video = real_videos / "clips/k400_flipping_pancake.mkv"
    if not video.exists():
        pytest.skip(f"no {video}")
    content, suffix, done = damage(video.read_bytes(), b"", video.suffix, seed=11, number=97)
    assert done == "3 fields of the first 1024 bytes set"
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    read = read_frames(path, lambda count: torch.tensor([count - 1]))
    assert read.decoder == "pyav" and 0 < read.num_frames <= 310  # PyAV 17 and 18 find 3 of them, 19 all
    program = """
import sys, torch, octvideo.video.decord_reader as decord_reader
from octvideo.video import VideoReadError, read_frames
decord_reader._BUSY_S = 0.5
try:
    read_frames(sys.argv[1], lambda count: torch.tensor([count - 1]), decoder="decord")
except VideoReadError as error:
    print(error.reason)
"""
    # A process of its own, since decord's thread stays; it does not keep the process from ending well.
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 0 and "decord does not come back" in done.stderr
    assert done.stdout == "decord waits for frames that do not come (with decoder 'decord'; 'auto' takes PyAV)\n"


def test_no_other_library_sees_the_names_of_decords() -> None:
    program = """
import ctypes
from octvideo.video.decord_reader import decord
print(hasattr(decord._ffi.base._LIB, "DECORDGetLastError"), hasattr(ctypes.CDLL(None), "DECORDGetLastError"))
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "True False\n"


def test_decord_may_take_its_time_but_not_ask_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decord_reader, "_BUSY_S", 0.1)
    monkeypatch.setattr(decord_reader, "_LOOK_S", 0.02)
    monkeypatch.setattr(decord_reader, "_left", [])
    looks, clock = threading.Semaphore(0), itertools.count()
    stop, answer = threading.Event(), threading.Event()

    def slow() -> Tensor:
        for _ in range(20):
            looks.acquire()
        return torch.tensor([1, 2])

    with monkeypatch.context() as patch:
        patch.setattr(decord_reader, "_IDLE_S", 0.1)  # more than 5 looks at an idle process
        for looks_each_second in (1, 2):  # others decode: at each look, at every other one

            def cpu_seconds(each: int = looks_each_second) -> float:
                looks.release()
                return float(next(clock) // each)

            patch.setattr(decord_reader, "_cpu_seconds", cpu_seconds)
            assert decord_reader._watched(slow).tolist() == [1, 2]
        patch.setattr(decord_reader, "_cpu_seconds", lambda: 7.0)
        with pytest.raises(ReaderFailure, match="waits for frames that do not come"):
            decord_reader._watched(answer.wait)
        answer.set()
    try:
        with pytest.raises(ReaderFailure, match="waits for frames that do not come"):
            decord_reader._watched(lambda: all(not stop.is_set() for _ in itertools.count()))
    finally:
        stop.set()


def test_calls_that_decord_was_left_in_do_not_count_as_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decord_reader, "time", SimpleNamespace(process_time=lambda: 10.0))
    monkeypatch.setattr(decord_reader, "_left", [SimpleNamespace(cpu_seconds=lambda: 4.0)] * 2)
    assert decord_reader._cpu_seconds() == 2.0


def test_a_bug_is_no_fault_of_the_video() -> None:
    def bug() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        decord_reader._watched(bug)


@pytest.mark.parametrize("name", ["odd/bad_timescale__no_timescale.mp4"])
def test_a_rotten_file_gives_the_same_every_time(real_videos: Path, name: str) -> None:
    """Its damage lies behind the wanted frame: decord's threads may see it in time, or not."""
    path = real_videos / name
    if not path.exists():
        pytest.skip(f"no {path}")
    reads = [read_frames(path, lambda count: torch.tensor([0])) for _ in range(20)]
    assert {(read.num_frames, read.decoder, int(read.frames.sum())) for read in reads} == {
        (reads[0].num_frames, "pyav", int(reads[0].frames.sum()))
    }


def rot(path: Path, numbers: list[int]) -> None:
    """Zeros over packets, of which each is found by its content."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        place = content.index(packets[number])
        content[place : place + len(packets[number])] = bytes(len(packets[number]))
    path.write_bytes(content)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def header_only(path: Path, video: Path) -> None:
    """An mp4 whose header came first and whose frames never came."""
    content = video.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") - 4])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.mp4", lambda path, video: None, "no such file"),
        ("folder.mp4", lambda path, video: path.mkdir(), "it is a folder"),
        ("pipe.mp4", lambda path, video: os.mkfifo(path), "it is a pipe or a device, and no file"),
        ("empty.mp4", lambda path, video: path.touch(), "the file is empty"),
        ("text.mp4", lambda path, video: path.write_text("hello\n" * 100), "Invalid data found when processing input"),
        (
            "audio.mp4",
            lambda path, video: audio_only(path),
            "no video stream that FFmpeg can decode (streams: audio)",
        ),
        ("header.mp4", header_only, "it holds no frames"),
    ],
)
@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_the_message_names_file_and_reason(
    tmp_path: Path, video: Path, name: str, make: Callable[[Path, Path], object], reason: str, decoder: Decoder
) -> None:
    path = tmp_path / name
    make(path, video)
    with pytest.raises(VideoReadError) as error:
        read_frames(path, every, decoder=decoder)
    assert str(error.value) == f"cannot read video '{path}': {reason}"
    assert isinstance(error.value, UserError)


def test_a_video_of_which_nothing_can_be_decoded(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "noise.mkv", moving(5, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in [bytes(packet) for packet in container.demux(video=0) if packet.size]:
            place = content.index(packet)
            content[place : place + len(packet)] = bytes(len(packet))
    path.write_bytes(content)
    with pytest.raises(VideoReadError, match="no frame can be decoded"):
        read_frames(path, every)


def test_an_unknown_decoder(video: Path) -> None:
    with pytest.raises(UserError, match="decoder: got 'ffmpeg', expected 'auto', 'decord', 'pyav' or 'torchcodec'"):
        read_frames(video, every, decoder="ffmpeg")  # type: ignore[arg-type]


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoReadError("a b.mp4", "it is a folder")))
    assert isinstance(error, VideoReadError)
    assert str(error) == "cannot read video 'a b.mp4': it is a folder"
    assert (error.path, error.reason) == ("a b.mp4", "it is a folder")
