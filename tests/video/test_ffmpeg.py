"""Frames and their order are those that the ffmpeg program gives.

imageio-ffmpeg (of the dev extra) brings the program. Our luma is taken from the frames that `read_frames` converts to
RGB: the conversion is replaced by one that repeats the Y plane three times, all before it is as ever.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import octvideo.video.pyav_file as pyav_file
from octvideo.video import VideoReadError, read_frames
from tests.video.reference import every, has_encoder, torchcodec_reason, wanted

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg, which brings the ffmpeg program")

HEIGHT, WIDTH, LENGTH = 64, 96, 30
# name: encoder, its options
FILES: dict[str, tuple[str, dict[str, object]]] = {
    "h264.mp4": ("libx264", {"g": 12, "bf": 3}),
    "h264 open groups.mkv": ("libx264", {"x264_params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}),
    "hevc.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:min-keyint=10:bframes=3:log-level=none:pools=1"},
    ),
    "hevc temporal layers.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:bframes=3:temporal-layers=1:log-level=none:pools=1"},
    ),
    "vp9.webm": ("libvpx-vp9", {"g": 10, "deadline": "realtime", "cpu_used": 8}),
    "vp9 with hidden frames.webm": ("libvpx-vp9", {"g": 15, "auto_alt_ref": 1, "lag_in_frames": 12, "cpu_used": 5}),
    "av1.mp4": ("libsvtav1", {"preset": 12, "g": 10}),
    "mpeg4.mp4": ("mpeg4", {"g": 8}),
    "mpeg4 with B-frames.mp4": ("mpeg4", {"g": 8, "bf": 2}),
    "mpeg4 with B-frames.avi": ("mpeg4", {"g": 8, "bf": 2}),
}
Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


def of_ffmpeg(path: Path, pixels: str, height: int, width: int) -> Tensor:
    """All frames as the program gives them, uint8 (T, H, W) for "gray" (the luma as it is) or (T, H, W, 3)."""
    convert = ["-vf", "extractplanes=y"] if pixels == "gray" else ["-pix_fmt", pixels]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), *convert]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    frames = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return frames.reshape(-1, height, width, *([] if pixels == "gray" else [3]))


class LumaReformatter:
    """In place of PyAV's: each pixel's Y, three times."""

    def reformat(self, frame: av.VideoFrame, **options: Any) -> av.VideoFrame:
        plane = frame.planes[0]
        luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        return av.VideoFrame.from_ndarray(np.repeat(luma[..., None], 3, axis=2).copy(), format="rgb24")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ffmpeg")


@pytest.fixture(params=FILES)
def clip(request: pytest.FixtureRequest, folder: Path, encode: Encode, moving: Moving) -> Path:
    encoder, options = FILES[request.param]
    if not has_encoder(encoder):
        pytest.skip(f"this PyAV has no {encoder}")
    path = folder / request.param
    return path if path.exists() else encode(path, moving(LENGTH, HEIGHT, WIDTH), encoder, **options)


def variable(path: Path, frames: Tensor) -> list[float]:
    """Writes H.264 with B-frames at a variable rate; returns the frames' times in seconds."""
    ticks = torch.tensor([40, 40, 40, 500, 20, 20, 90, 33, 33, 34]).repeat(len(frames))[: len(frames)].cumsum(0) - 40
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for image, tick in zip(frames.numpy(), ticks.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return [tick / 1000 for tick in ticks.tolist()]


CHOICES = [every, wanted(LENGTH - 1), wanted(9, 10, 11), wanted(2, 13, 21), wanted(20, 24)]


def check(path: Path, monkeypatch: pytest.MonkeyPatch, height: int = HEIGHT, width: int = WIDTH) -> None:
    """Luma bit by bit, RGB within two levels, whatever is asked for."""
    rgb = of_ffmpeg(path, "rgb24", height, width)
    assert len(rgb) == LENGTH
    for decoder in ("auto", "pyav", "decord", "torchcodec"):
        if decoder == "torchcodec" and torchcodec_reason():
            continue
        for choose in CHOICES:
            try:
                read = read_frames(path, choose, decoder=decoder)  # type: ignore[arg-type]
            except VideoReadError as error:
                assert decoder in ("decord", "torchcodec") and "'auto' takes PyAV" in str(error)
                continue
            assert read.num_frames == LENGTH
            assert (read.frames[read.places].int() - rgb[choose(LENGTH)].int()).abs().max() <= 2, decoder
    luma = of_ffmpeg(path, "gray", height, width)
    monkeypatch.setattr(pyav_file, "VideoReformatter", LumaReformatter)
    for choose in CHOICES:
        read = read_frames(path, choose, decoder="pyav")
        assert torch.equal(read.frames[read.places][..., 0], luma[choose(LENGTH)])


def test_frames_are_those_of_the_ffmpeg_program(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(clip, monkeypatch)


def test_frames_of_a_variable_rate_too(tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "variable.mp4"
    variable(path, moving(LENGTH, HEIGHT, WIDTH))
    check(path, monkeypatch)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_frames_too(
    tmp_path: Path, encode: Encode, moving: Moving, rotation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV can't write a rotation")
    path = encode(tmp_path / "phone.mp4", moving(LENGTH, HEIGHT, WIDTH), rotation=rotation, bf=2, g=12)
    turned = (HEIGHT, WIDTH) if rotation == 180 else (WIDTH, HEIGHT)
    check(path, monkeypatch, *turned)


@pytest.mark.parametrize("target_fps", [5, 24, 29.97, 120])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_sampling_by_time(tmp_path: Path, moving: Moving, target_fps: float, decoder: Any) -> None:
    """Against a look through the times one after the other."""
    path = tmp_path / "variable.mp4"
    times = variable(path, moving(LENGTH, HEIGHT, WIDTH))
    frames = read_frames(path, every).frames
    read = read_frames(path, every, decoder=decoder, target_fps=target_fps)
    shown = []
    tick = 0
    while tick / target_fps < times[-1]:  # how long the last frame stays is the encoder's guess
        shown.append(max(n for n, time in enumerate(times) if time <= tick / target_fps + 1e-9))
        tick += 1
    assert len(shown) <= read.num_frames <= len(shown) + target_fps
    got = read.frames[read.places]
    assert torch.equal(got[: len(shown)], frames[shown])
    assert torch.equal(got[len(shown) :], frames[-1:].expand_as(got[len(shown) :]))
    assert len(read.frames) == len(
        {*shown, *([LENGTH - 1] if read.num_frames > len(shown) else [])}
    )  # each distinct frame is held once
