"""What tests of readers have in common: files of many kinds, and plain decoding to hold the frames against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video.torchcodec_reader import load_torchcodec

# name: encoder, its options, who can read it at best, why not decord
FILES: dict[str, tuple[str, dict[str, object], str, str]] = {
    "h264 with B-frames.mp4": ("libx264", {"g": 8, "bf": 3, "movflags": "faststart"}, "decord", ""),
    "h264 with B-frames.mkv": ("libx264", {"g": 8, "bf": 3}, "decord", ""),
    "h264 4:4:4.mp4": ("libx264", {"g": 8, "pix_fmt": "yuv444p"}, "decord", ""),
    "h264 10 bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le"}, "pyav", "pixel format yuv420p10le"),
    "h264 open groups.mp4": (
        "libx264",
        {"x264_params": "open-gop=1:keyint=10:bframes=3:scenecut=0"},
        "pyav",
        "keyframes that refer to earlier frames",
    ),
    "h264 intra refresh.mp4": (
        "libx264",
        {"x264_params": "intra-refresh=1:keyint=10"},
        "pyav",
        "keyframes that refer to earlier frames",
    ),
    "h264.avi": ("libx264", {"g": 8, "bf": 0}, "pyav", "container avi"),
    "hevc as x265 writes it.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:min-keyint=10:bframes=3:open-gop=1:log-level=none:pools=1"},
        "pyav",
        "frames that refer across keyframes",
    ),
    "hevc closed groups.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:min-keyint=10:bframes=3:open-gop=0:log-level=none:pools=1"},
        "decord",
        "",
    ),
    "mpeg4.mp4": ("mpeg4", {"g": 8}, "decord", ""),
    "mpeg4 with B-frames.mp4": ("mpeg4", {"g": 8, "bf": 2}, "pyav", "frames that refer across keyframes"),
    "mpeg4 with B-frames.avi": ("mpeg4", {"g": 8, "bf": 2}, "pyav", "container avi"),
    "vp9.webm": ("libvpx-vp9", {"g": 8, "deadline": "realtime", "cpu_used": 8}, "decord", ""),
    "vp8.webm": ("libvpx", {"g": 8, "deadline": "realtime", "cpu_used": 8}, "decord", ""),
    "av1.mp4": ("libsvtav1", {"preset": 12, "g": 8}, "pyav", "codec libdav1d"),
    "av1 open groups.mp4": (
        "libsvtav1",
        {"preset": 12, "svtav1_params": "irefresh-type=1:keyint=8"},
        "pyav",
        "codec libdav1d",
    ),
}


def has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except (av.FFmpegError, ValueError):
        return False
    return True


def plainly(path: Path) -> Tensor:
    """The reference: every frame, one after the other, (T, H, W, C)."""
    with av.open(str(path)) as container:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))


def every(num_frames: int) -> Tensor:
    return torch.arange(num_frames)


def wanted(*numbers: int) -> Callable[[int], Tensor]:
    return lambda num_frames: torch.tensor(numbers)


@functools.cache
def torchcodec_reason() -> str | None:
    """Why torchcodec can't be tested; None where it can."""
    try:
        load_torchcodec()
    except UserError as error:
        return str(error)
    return None
