"""Overlays: the same frames at the same times, the same sound, and a file that is whole or not there."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video import FileFrames, VideoReadError, h264, overlay
from octvideo.video.overlay import write_overlay

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]
# In milliseconds: of frames that come when they will.
TIMES_MS = [42, 80, 90, 200, 240, 280, 333, 400, 401, 500, 700, 733]


def with_sound(path: Path, frames: Tensor, codec: str = "aac", sample_format: str = "fltp") -> Path:
    """Writes frames at TIMES_MS, with a tone of a second."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.width, video.height, video.codec_context.time_base = 64, 48, Fraction(1, 90000)
        sound: Any = container.add_stream(codec, rate=44100, layout="stereo")
        for image, time in zip(frames.numpy(), TIMES_MS, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time * 90, Fraction(1, 90000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        resampler = av.AudioResampler(format=sample_format, layout="stereo", rate=44100)
        for start in range(0, 44032, 1024):
            tone = np.sin(np.arange(start, start + 1024) / 20, dtype=np.float32)
            chunk = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            chunk.rate, chunk.pts, chunk.time_base = 44100, start, Fraction(1, 44100)
            for piece in resampler.resample(chunk):
                container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path


def frames_of(path: Path) -> tuple[list[Fraction], np.ndarray]:
    """Times in seconds, and pixels (T, H, W, 3)."""
    with FileFrames(path, None) as frames:
        found = [(frame.time * frames.time_base, frame.image.numpy()) for frame in frames]
    return [time for time, _ in found], np.stack([image for _, image in found])


def sound_of(path: Path) -> list[tuple[bytes, Fraction]]:
    """Packets of the sound, and their times."""
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.size]


def nothing(image: np.ndarray, time_sec: float) -> None:
    """Paints nothing."""


def test_frames_keep_their_times_and_sound_its_packets(tmp_path: Path, moving: Moving) -> None:
    source, path = with_sound(tmp_path / "a.mp4", moving(12, 48, 64)), tmp_path / "b.mp4"
    seen: list[float] = []

    def paint(image: np.ndarray, time_sec: float) -> None:
        seen.append(time_sec)
        image[24:, :16] = 255, 0, 0

    done: list[float] = []
    report = write_overlay(source, path, paint, on_frame=done.append)
    (times, images), (new_times, new_images) = frames_of(source), frames_of(path)
    assert new_times == times == [Fraction(time, 1000) for time in TIMES_MS]
    assert seen == done == [float(time) for time in times]
    assert sound_of(path) == sound_of(source)
    assert new_images.shape == images.shape
    rest = np.abs(new_images.astype(int) - images)[:, :, 20:]
    assert rest.mean() < 4 and (new_images[:, 28:, 2:12].mean((0, 1, 2)) - [255, 0, 0] < 40).all()
    assert np.abs(new_images.astype(int) - images)[:, 26:, 2:12].mean() > 60
    assert (report.num_frames, report.notes, report.trouble) == (12, [], "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_sound_that_the_container_does_not_take_is_encoded_anew(tmp_path: Path, moving: Moving) -> None:
    source = with_sound(tmp_path / "a.mkv", moving(12, 48, 64), "pcm_s16le", "s16")
    report = write_overlay(source, tmp_path / "b.mp4", nothing)
    assert report.notes == ["sound is encoded anew, to AAC: mp4 does not take it as it is (pcm_s16le)"]
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        tone = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)[0]
    expected = np.sin(np.arange(44032) / 20)
    late = [np.abs(tone[shift:][9000:40000] - expected[9000:40000]).mean() for shift in (0, 1024)]
    assert min(late) < 0.06  # the encoder's first samples are played, or not
    assert write_overlay(source, tmp_path / "b.mkv", nothing).notes == []
    assert [data for data, _ in sound_of(tmp_path / "b.mkv")] == [data for data, _ in sound_of(source)]


def test_odd_sizes_grow_and_rotated_frames_stand_upright(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source = encode(tmp_path / "a.mkv", moving(3, 48, 64)[:, :47, :61], "ffv1", pix_fmt="bgr0")
    report = write_overlay(source, tmp_path / "b.mp4", nothing)
    assert report.notes == ["61x47 became 62x48, with the last row or column twice: H.264 takes even sizes"]
    images, new = frames_of(source)[1], frames_of(tmp_path / "b.mp4")[1]
    assert new.shape == (3, 48, 62, 3) and np.abs(new[:, :47, :61].astype(int) - images).mean() < 5
    turned = encode(tmp_path / "turned.mp4", moving(3, 48, 64), rotation=90)
    write_overlay(turned, tmp_path / "c.mp4", nothing)
    images, new = frames_of(turned)[1], frames_of(tmp_path / "c.mp4")[1]
    assert new.shape == images.shape == (3, 64, 48, 3) and np.abs(new.astype(int) - images).mean() < 5
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_pixels_that_are_no_squares_stay_so(tmp_path: Path, moving: Moving) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.codec_context.sample_aspect_ratio = 64, 48, Fraction(16, 11)
        for image in moving(3, 48, 64).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    write_overlay(tmp_path / "a.mp4", tmp_path / "b.mp4", nothing)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_a_video_that_ends_in_rubbish_is_written_as_far_as_it_can_be_read(
    tmp_path: Path, encode: Encode, moving: Moving
) -> None:
    source = encode(tmp_path / "a.mp4", moving(40, 48, 64), movflags="faststart", g=10)
    source.write_bytes(source.read_bytes()[:-2500])
    report = write_overlay(source, tmp_path / "b.mp4", nothing)
    times = frames_of(source)[0]
    assert frames_of(tmp_path / "b.mp4")[0] == times and 0 < report.num_frames == len(times) < 40
    assert report.trouble
    source.write_bytes(b"not a video")
    with pytest.raises(VideoReadError, match=r"cannot read video '.*a\.mp4'"):
        write_overlay(source, tmp_path / "c.mp4", nothing)
    assert not (tmp_path / "c.mp4").exists()


def test_an_interrupt_leaves_what_was_there(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source, path = encode(tmp_path / "a.mp4", moving(5, 48, 64)), tmp_path / "b.mp4"
    path.write_bytes(b"older")

    def interrupt(image: np.ndarray, time_sec: float) -> None:
        if time_sec > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay(source, path, interrupt)
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 2


def test_encoders_that_are_not_there_or_do_not_work(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = encode(tmp_path / "a.mp4", moving(3, 48, 64))
    monkeypatch.setattr(overlay.av, "codecs_available", {"aac"})
    with pytest.raises(UserError, match=r"this PyAV has no encoder of H\.264; its wheels have: pip install"):
        write_overlay(source, tmp_path / "b.mp4", nothing)
    monkeypatch.setattr(overlay.av, "codecs_available", {"h264_nvenc"})
    monkeypatch.setattr(h264, "_works", lambda name: False)
    with pytest.raises(UserError, match=r"no encoder of H\.264 that works \(tried h264_nvenc\)"):
        write_overlay(source, tmp_path / "b.mp4", nothing)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_whether_an_encoder_works_is_tried() -> None:
    assert h264._works("mpeg4") and not h264._works("no such encoder")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.avi", r"b\.avi: got \.avi, expected \.mp4, \.m4v, \.mov, \.mkv"),
        ("b", r"b: got no suffix"),
        ("none/b.mp4", r"no folder .*none"),
        ("a.mp4", r"this is the video itself"),
    ],
)
def test_names_that_can_not_be_meant(name: str, message: str, tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source = encode(tmp_path / "a.mp4", moving(3, 48, 64))
    with pytest.raises(UserError, match=message):
        write_overlay(source, tmp_path / name, nothing)


@pytest.mark.slow
def test_odd_files_are_written_with_their_times_or_refused_in_one_line(real_videos: Path, tmp_path: Path) -> None:
    for source in sorted((real_videos / "odd").iterdir()):
        if source.suffix == ".tsv" or source.name.startswith(("huge_", "long_")):
            continue
        path = tmp_path / f"{source.name}.mp4"
        try:
            write_overlay(source, path, nothing)
        except VideoReadError as error:
            assert "\n" not in str(error) and not path.exists()
            continue
        with FileFrames(source, 32) as frames, FileFrames(path, 32) as new:
            times = [frame.time * frames.time_base for frame in frames]
            new_times = [frame.time * new.time_base for frame in new]
        # A file without sound starts with its first frame.
        assert [time - times[0] for time in times] == pytest.approx([time - new_times[0] for time in new_times]), source


def test_it_loads_with_a_pyav_that_knows_fewer_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV 17, the last for Python 3.10."""
    fewer = {name: value.value for name, value in Colorspace.__members__.items() if name != "BT2020"}
    monkeypatch.setattr("av.video.reformatter.Colorspace", IntEnum("Colorspace", fewer))
    assert sorted(runpy.run_path(overlay.__file__)["_MATRICES"]) == [1, 4, 5, 6, 7]
