"""Some seconds of a video, small and without sound, in H.264: a moving thumbnail."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from octvideo.files import whole_file
from octvideo.video.browser import beside_name
from octvideo.video.frames import VideoReadError, check_is_file
from octvideo.video.h264 import encoder_name
from octvideo.video.isolated import Alive
from octvideo.video.pyav_file import CONVERT_OPTIONS, Colours, decoded_frames, drained_frames, main_stream, open_video
from octvideo.video.streaming import resized
from octvideo.video.transforms import short_side_size

SHORT_SIDE_PX, SECONDS, FPS = 160, 3.0, 12
# Small rather than sharp; an encoder without these settings has a rate.
_SETTINGS = {"libx264": {"preset": "veryfast", "crf": "27", "profile": "high"}}
_RATE = 150_000
_PLAYED_EARLY = {"movflags": "faststart"}
_MOST_LONG_PX = 480  # of a panorama


def thumbnail_name(source: str | Path) -> str:
    """The name of a video's thumbnail, in any folder.

    Raises:
        OSError: the video is not there.
    """
    return beside_name(source, ".mp4", SHORT_SIDE_PX, SECONDS, FPS)


def make_thumbnail(item: tuple[str, str], alive: Alive) -> None:
    """Writes a video's thumbnail; work for an `IsolatedPool`.

    Args:
        item: path of the video, and of its thumbnail.
        alive: called for every frame.

    Raises:
        VideoReadError: no frame can be decoded where the thumbnail should be.
    """
    source, path = item
    write_thumbnail(source, Path(path), alive)


def write_thumbnail(source: str | Path, path: Path, alive: Alive = lambda done=0, total=0, /: None) -> None:
    """Writes the middle seconds of a video, or all of a short one; the file is there when it is whole.

    Where nothing can be decoded from its middle on, these are its first seconds.

    Raises:
        VideoReadError: no frame can be decoded.
    """
    check_is_file(source)
    if not (_write(source, path, alive, middle=True) or _write(source, path, alive, middle=False)):
        raise VideoReadError(source, "no frame can be decoded")


def _write(source: str | Path, path: Path, alive: Alive, *, middle: bool) -> bool:
    """Whether there was a frame to write."""
    with open_video(source) as container:
        stream = main_stream(source, container)
        frames = _sampled(_frames(container, stream, middle=middle))
        first = next(frames, None)
        if first is None:
            return False
        colours = Colours(source)
        shape = colours.rgb(first, ()).shape
        height, width = _size(shape[0], shape[1])
        name = encoder_name()
        with whole_file(path) as part, av.open(str(part.absolute()), "w", format="mp4", options=_PLAYED_EARLY) as out:
            coder: Any = out.add_stream(name, rate=FPS, options=_SETTINGS.get(name, {}))
            coder.width, coder.height, coder.pix_fmt = width, height, "yuv420p"
            if name not in _SETTINGS:
                coder.bit_rate = _RATE
            for number, frame in enumerate(chain([first], frames)):
                rgb = torch.from_numpy(np.ascontiguousarray(colours.rgb(frame, shape)))
                small = av.VideoFrame.from_ndarray(resized(rgb, (height, width)).numpy(), format="rgb24")
                picture = small.reformat(format="yuv420p", **CONVERT_OPTIONS)
                picture.pts, picture.time_base = number, Fraction(1, FPS)
                out.mux(coder.encode(picture))
                alive()
            out.mux(coder.encode(None))
    return True


def _size(height: int, width: int) -> tuple[int, int]:
    """Of the thumbnail, even numbers as H.264 takes them."""
    height, width = short_side_size(height, width, min(SHORT_SIDE_PX, min(height, width)))
    shrink = min(1.0, _MOST_LONG_PX / max(height, width))
    return max(round(height * shrink / 2), 1) * 2, max(round(width * shrink / 2), 1) * 2


def _frames(container: Any, stream: Any, *, middle: bool) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Frames of some seconds and when each is displayed, from the first of them on."""
    begin = Fraction(container.start_time or 0, av.time_base)
    late = (Fraction(container.duration or 0, av.time_base) - Fraction(SECONDS)) / 2
    if middle and late > 0:
        begin += late
        try:
            container.seek(int(begin / stream.time_base), stream=stream)  # to the key frame before it
        except (av.FFmpegError, ValueError):
            return
    step = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
    time, first = begin - step, None
    for frame in _decoded(container, stream):
        time = time + step if frame.pts is None else frame.pts * Fraction(stream.time_base)
        if time < begin and middle:
            continue
        first = time if first is None else first
        if time - first >= SECONDS:
            return
        yield time - first, frame


def _sampled(frames: Iterator[tuple[Fraction, av.VideoFrame]]) -> Iterator[av.VideoFrame]:
    """What is displayed at each step of `FPS`."""
    shown, number = None, 0
    for time, frame in frames:
        while shown is not None and Fraction(number, FPS) < time:
            yield shown
            number += 1
        shown = frame
    if shown is not None:
        yield shown


def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except (av.FFmpegError, ValueError):
            break  # as far as it can be read
        if packet.size:
            yield from decoded_frames(packet)[0]
    yield from drained_frames(stream)
