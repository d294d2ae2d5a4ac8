"""A video file as distinct frames, with decord where it can, else with PyAV.

Both give the same uint8 RGB frames. The choice is made per file: `auto` looks into the container (a few
milliseconds), gives decord what its FFmpeg 4.1 reads without surprises, and PyAV everything else. No reader
outlives a call: an idle decord reader goes on decoding in the background (94 MB grew to 2.35 GB in 8 s), and
one opened before a fork hangs the child.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from torch import Tensor

import decord  # isort: skip  (before torch, both crash)
from decord._ffi.base import DECORDLimitReachedError  # isort: skip

from octvideo.errors import UserError

Decoder = Literal["auto", "decord", "pyav"]

log = logging.getLogger("octvideo.video")

# What decord 0.6 decodes exactly; it has no AV1 and gives garbage for more than 8 bits.
_DECORD_CODECS = frozenset({"h264", "hevc", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg"})
_DECORD_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_DECORD_CONTAINERS = ("mp4", "matroska", "avi")
_told: set[str] = set()


class VideoReadError(UserError):
    """A video that can't be read.

    Args:
        path: of the video.
        reason: in one line.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read video '{path}': {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes pickle their errors
        return VideoReadError, (self.path, self.reason)


@dataclass(frozen=True)
class Frames:
    """The frames that were asked for, each held once.

    Args:
        frames: distinct frames in the order of the video, uint8 (D, H, W, C), RGB.
        places: for each frame number asked for, its place among the D, int64 in the shape they were asked in.
        num_frames: of the video.
        decoder: that read it.
    """

    frames: Tensor
    places: Tensor
    num_frames: int
    decoder: Literal["decord", "pyav"]


class _NotForDecordError(Exception):
    """Why decord does not get a file."""


class _FewerFramesError(Exception):
    """A file gave fewer frames than it announced."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(num_frames)
        self.num_frames = num_frames


def read_frames(
    path: str | Path, choose: Callable[[int], Tensor], *, decoder: Decoder = "auto", num_threads: int = 1
) -> Frames:
    """Reads the frames that `choose` wants, each once, in the order of the video.

    Frames are numbered from 0 in the order of their display. Where a file holds fewer frames than it
    announces (cut off, rotten), `choose` is asked again with the number that can be read, and a warning says so.

    Args:
        path: of the video.
        choose: from the number of frames to the frame numbers wanted, int64 of any shape.
        decoder: "auto" is decord where it can, else PyAV.
        num_threads: of the decoder; in a DataLoader worker 1.

    Raises:
        VideoReadError: with file and reason.
        UserError: for an unknown decoder.
    """
    if decoder not in ("auto", "decord", "pyav"):
        raise UserError(f"decoder: got {decoder!r}, expected 'auto', 'decord' or 'pyav'")
    _check_file(path)
    if decoder != "pyav":
        try:
            if decoder == "auto":
                _check_suits_decord(path)
            return _read_decord(path, choose, num_threads)
        except _NotForDecordError as reason:
            if decoder == "decord":
                raise VideoReadError(path, f"{reason} (with decoder 'decord'; 'auto' tries PyAV)") from None
            _say_once(path, str(reason))
    return _read_pyav(path, choose, num_threads)


def _check_file(path: str | Path) -> None:
    file = Path(path)
    if not file.is_file():
        raise VideoReadError(path, "it is a folder" if file.is_dir() else "no such file")
    if file.stat().st_size == 0:
        raise VideoReadError(path, "the file is empty")


def _say_once(path: str | Path, reason: str) -> None:
    """Each reason aloud for its first file, quietly for the others: a data set may be all AV1."""
    level = logging.INFO if reason in _told else logging.WARNING
    _told.add(reason)
    log.log(level, "%s: %s; read with PyAV", path, reason)


def _sorted_unique(frames: Tensor, num_frames: int) -> tuple[list[int], Tensor]:
    wanted, places = torch.unique(frames, return_inverse=True)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= num_frames:
        raise ValueError(f"frame numbers: got {wanted.tolist()[:3]} ..., expected some in [0, {num_frames})")
    return wanted.tolist(), places


# ── decord ──────────────────────────────────────────────────────────────────────────────────────────────────


def _check_suits_decord(path: str | Path) -> None:
    """A look into the container, without decoding.

    Raises:
        _NotForDecordError: with the reason.
    """
    with _opened(path) as container:
        stream = _video_stream(path, container)
        codec = stream.codec_context
        if codec.name not in _DECORD_CODECS:
            raise _NotForDecordError(f"codec {codec.name}")
        if codec.pix_fmt not in _DECORD_PIXELS:
            raise _NotForDecordError(f"pixel format {codec.pix_fmt}")
        if not any(name in container.format.name for name in _DECORD_CONTAINERS):
            raise _NotForDecordError(f"container {container.format.name}")


def _read_decord(path: str | Path, choose: Callable[[int], Tensor], num_threads: int) -> Frames:
    try:
        # fault_tol: a frame that can't be decoded is an error. By default decord fills the gap with a copy of
        # another frame and says nothing (VP8's invisible frames, frames dropped in an AVI, rotten ones).
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
        num_frames = len(reader)
        wanted, places = _sorted_unique(choose(num_frames), num_frames)
        batch = reader.get_batch(wanted)
        del reader  # see above: it would go on decoding
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError) as error:
        raise _NotForDecordError(f"decord fails: {_first_line(error)}") from error
    # The bridge is one switch for the whole process: somebody may have set it to torch.
    frames = batch if isinstance(batch, Tensor) else torch.from_numpy(batch.asnumpy())
    return Frames(frames, places, num_frames, "decord")


# ── PyAV ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_pyav(path: str | Path, choose: Callable[[int], Tensor], num_threads: int) -> Frames:
    num_frames = announced = _count_packets(path)
    while num_frames > 0:
        wanted, places = _sorted_unique(choose(num_frames), num_frames)
        try:
            frames = _decode(path, wanted, num_threads)
        except _FewerFramesError as fewer:
            # Fewer each time, so this ends; in practice the second pass succeeds.
            num_frames = fewer.num_frames
            continue
        if num_frames < announced:
            log.warning("%s: only %d of its %d frames can be read", path, num_frames, announced)
        return Frames(frames, places, num_frames, "pyav")
    raise VideoReadError(path, "no frame can be decoded" if announced else "it holds no frames")


def _count_packets(path: str | Path) -> int:
    """Packets of the video stream, one a frame; what the header says may be missing or wrong."""
    count = 0
    with _opened(path) as container:
        stream = _video_stream(path, container)
        try:
            for packet in container.demux(stream):
                count += packet.size > 0 and not packet.is_corrupt
        except (av.FFmpegError, ValueError) as error:
            if count == 0:
                _fail(path, error)
    return count


def _decode(path: str | Path, wanted: list[int], num_threads: int) -> Tensor:
    """The wanted frames, (D, H, W, C).

    Raises:
        _FewerFramesError: the file ends before the last of them.
    """
    images: list[np.ndarray] = []
    seen = 0
    with _opened(path) as container:
        stream = _video_stream(path, container)
        stream.thread_count = num_threads
        stream.thread_type = "NONE" if num_threads == 1 else "AUTO"
        for frame in _decoded(container, stream):
            if seen == wanted[len(images)]:
                images.append(_as_rgb(frame, images[0].shape if images else None))
                if len(images) == len(wanted):
                    return torch.from_numpy(np.stack(images))
            seen += 1
    raise _FewerFramesError(seen)


def _decoded(container: Any, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frames in the order of display; packets that can't be decoded give none."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError):
            continue
        for frame in frames:
            if not getattr(frame, "is_corrupt", False):
                yield frame


def _as_rgb(frame: av.VideoFrame, shape: tuple[int, ...] | None) -> np.ndarray:
    """RGB (H, W, C), upright, and of the first frame's shape where the resolution changes in mid-stream."""
    image = frame.to_ndarray(format="rgb24")
    quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as in numpy
    image = np.rot90(image, quarters) if quarters else image
    if shape is not None and image.shape != shape:
        height, width = shape[:2] if quarters % 2 == 0 else shape[1::-1]
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        image = np.rot90(image, quarters) if quarters else image
    return image


def _opened(path: str | Path) -> Any:
    try:
        # Absolute: FFmpeg would take a name such as "concat:..." or "-x.mp4" for something else.
        return av.open(str(Path(path).absolute()), metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        _fail(path, error)


def _video_stream(path: str | Path, container: Any) -> VideoStream:
    """The stream that FFmpeg (and with it decord) takes for the main one, cover pictures left aside."""
    stream = container.streams.best("video")
    is_cover = stream is not None and stream.disposition & av.stream.Disposition.attached_pic
    if stream is not None and stream.codec_context is not None and not is_cover:
        return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoReadError(path, f"no video stream that FFmpeg can decode (streams: {', '.join(kinds) or 'none'})")


def _fail(path: str | Path, error: Exception) -> NoReturn:
    reason = getattr(error, "strerror", None) or _first_line(error)
    raise VideoReadError(path, reason) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # decord puts the time, its own source line and the path before its message.
    return re.sub(r"^(\[[\d:]+\] )?\S+\.cc:\d+: (\[[^]]*\])?", "", lines[0] if lines else type(error).__name__)
