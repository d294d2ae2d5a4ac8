"""A video file open in PyAV: what every reader of ours does with it, so that all give the same frames and errors."""

from __future__ import annotations

from typing import Any, NoReturn

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from octvideo.files import one_line
from octvideo.video.frames import Source, VideoReadError, for_ffmpeg

# PyAV 19 drops the argument, and replaces by itself.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# One thread converts colours: newer versions of PyAV take all CPUs by default, also in each worker process, which
# costs several times the CPU time for a frame of 4K.
CONVERT_OPTIONS: dict[str, Any] = (
    {"threads": 1} if ":param int threads" in (VideoReformatter.reformat.__doc__ or "") else {}
)


def open_video(path: Source) -> Any:
    """The container of a file.

    Raises:
        VideoReadError: it can't be opened.
    """
    try:
        return av.open(for_ffmpeg(path), **OPEN_OPTIONS)
    except (av.FFmpegError, ValueError, OSError) as error:
        fail(path, error)


def main_stream(path: Source, container: Any) -> VideoStream:
    """The stream that FFmpeg (and with it decord) takes for the main one, cover pictures left aside.

    Raises:
        VideoReadError: there is none.
    """
    stream = container.streams.best("video")
    is_cover = stream is not None and stream.disposition & av.stream.Disposition.attached_pic
    if stream is not None and stream.codec_context is not None and not is_cover:
        return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoReadError(path, f"no video stream that FFmpeg can decode (streams: {', '.join(kinds) or 'none'})")


def set_threads(stream: VideoStream, num_threads: int) -> None:
    """Lets a decoder have so many threads."""
    stream.thread_count = num_threads
    stream.thread_type = "NONE" if num_threads == 1 else "AUTO"


def decoded_frames(packet: Any) -> tuple[list[av.VideoFrame], bool]:
    """Undamaged frames out of the decoder after one more packet, and whether nothing was damaged."""
    try:
        frames = packet.decode()
    except (av.FFmpegError, ValueError):
        return [], False
    intact = [frame for frame in frames if not frame.is_corrupt]
    return intact, len(intact) == len(frames)


def drained_frames(stream: Any) -> list[av.VideoFrame]:
    """What the decoder still holds back; it must be flushed before it takes other packets."""
    try:
        frames = stream.codec_context.decode(None)
    except (av.FFmpegError, ValueError):
        return []
    return [frame for frame in frames if not frame.is_corrupt]


class Colours:
    """Converts decoded frames to RGB.

    Args:
        path: of the video, for errors.
    """

    def __init__(self, path: Source) -> None:
        self._path, self._reformatter = path, VideoReformatter()

    def rgb(self, frame: av.VideoFrame, shape: tuple[int, ...]) -> np.ndarray:
        """RGB (H, W, C), upright, and of the first frame's shape, if any, where the resolution changes.

        Raises:
            VideoReadError: the frame can't be converted.
        """
        quarters, rest = divmod(frame.rotation, 90)  # counter-clockwise, as in numpy
        if rest or abs(quarters) > 4:  # a rotten header
            quarters = 0
        height, width = frame.height, frame.width
        if shape:
            height, width = shape[:2] if quarters % 2 == 0 else shape[1::-1]
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24", width=width, height=height, **CONVERT_OPTIONS)
        except (av.FFmpegError, ValueError) as error:
            fail(self._path, error)
        rows = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(height, -1)  # rows have padding
        return np.rot90(rows[:, : 3 * width].reshape(height, width, 3), quarters)


def fail(path: Source, error: Exception) -> NoReturn:
    """Raises FFmpeg's error as ours."""
    raise VideoReadError(path, one_line(error), may_pass=getattr(error, "may_pass", False)) from error
