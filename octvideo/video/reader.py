"""A video file as distinct frames, with decord where it can, else with PyAV.

Both give the same uint8 RGB frames. The choice is made per file: `auto` looks through its packets (a few
milliseconds), gives decord what its FFmpeg 4.1 reads without surprises, and PyAV everything else. No reader
outlives a call: an idle decord reader goes on decoding in the background (94 MB grew to 2.35 GB in 8 s), and
one opened before a fork hangs the child.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from torch import Tensor

import decord  # isort: skip  (before torch, both crash)
from decord._ffi.base import DECORDLimitReachedError  # isort: skip

from octvideo.errors import UserError
from octvideo.video.packets import Packets, look_through_packets
from octvideo.video.source import Source, for_ffmpeg, missing_reason

Decoder = Literal["auto", "decord", "pyav"]
Resize = Callable[[Tensor], Tensor]

log = logging.getLogger("octvideo.video")

# PyAV 19 drops the argument, and replaces by itself.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_told: set[str] = set()
_CHUNK_BYTES = 64 * 2**20

# Failures reach the caller as exceptions: decord's FFmpeg need not write each rotten block to the terminal too.
decord.logging.set_level(decord.logging.QUIET)


class VideoReadError(UserError):
    """A video that can't be read.

    Args:
        path: of the video.
        reason: in one line.
    """

    def __init__(self, path: Source, reason: str) -> None:
        super().__init__(f"cannot read video '{path}': {reason}")
        self.path, self.reason = str(path), reason

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
        num_missing: frames that the file announces beyond `num_frames` and that can't be read.
    """

    frames: Tensor
    places: Tensor
    num_frames: int
    decoder: Literal["decord", "pyav"]
    num_missing: int = 0


class _DecordError(Exception):
    """decord could not read a file."""


class _FewerFramesError(Exception):
    """A file gave fewer frames than it announced."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(num_frames)
        self.num_frames = num_frames


def read_frames(
    path: Source,
    choose: Callable[[int], Tensor],
    *,
    decoder: Decoder = "auto",
    num_threads: int = 1,
    resize: Resize | None = None,
) -> Frames:
    """Reads the frames that `choose` wants, each once, in the order of the video.

    Frames are numbered from 0 in the order of their display. Where a file holds fewer frames than it
    announces (cut off, rotten), `choose` is asked again with the number that can be read, and a warning says so.

    Args:
        path: of the video; or its content.
        choose: from the number of frames to the frame numbers wanted, int64 of any shape.
        decoder: "auto" is decord where its frames are sure to be the right ones, else PyAV.
        num_threads: of the decoder; in a DataLoader worker 1.
        resize: from frames (D, H, W, C) to frames, uint8; called while decoding with at most 64 MB of frames at a
            time, so that many large ones are never held whole.

    Raises:
        VideoReadError: with file and reason.
        UserError: for an unknown decoder.
    """
    if decoder not in ("auto", "decord", "pyav"):
        raise UserError(f"decoder: got {decoder!r}, expected 'auto', 'decord' or 'pyav'")
    if (reason := missing_reason(path)) is not None:
        raise VideoReadError(path, reason)
    packets = _look_inside(path)
    num_frames, trouble = packets.num_frames, packets.trouble
    if num_frames == 0:
        raise VideoReadError(path, "it holds no frames")
    if decoder == "pyav":
        return _read_pyav(path, choose, packets, num_threads, resize)
    if trouble is None:
        try:
            return _read_decord(path, choose, num_frames, num_threads, resize)
        except _DecordError as error:
            trouble = str(error)
    if decoder == "decord":
        raise VideoReadError(path, f"{trouble} (with decoder 'decord'; 'auto' takes PyAV)")
    read = _read_pyav(path, choose, packets, num_threads, resize)
    _say_once(path, trouble)
    return read


def _say_once(path: Source, reason: str) -> None:
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


def _read_decord(
    path: Source, choose: Callable[[int], Tensor], num_frames: int, num_threads: int, resize: Resize | None
) -> Frames:
    wanted, places = _sorted_unique(choose(num_frames), num_frames)
    reader = None
    try:
        # fault_tol: a frame that can't be decoded is an error. By default decord fills the gap with a copy of
        # another frame and says nothing.
        reader = decord.VideoReader(for_ffmpeg(path), ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
        if len(reader) != num_frames:
            raise _DecordError("decord counts other frames")
        if resize is None:
            frames = _as_tensor(reader.get_batch(wanted))
        else:
            first = _as_tensor(reader.get_batch(wanted[:1]))
            size = max(1, _CHUNK_BYTES // first.numel())
            chunks = [wanted[start : start + size] for start in range(1, len(wanted), size)]
            frames = torch.cat([resize(first), *(resize(_as_tensor(reader.get_batch(chunk))) for chunk in chunks)])
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, UnicodeError) as error:
        raise _DecordError(f"decord fails: {_first_line(error)}") from error
    finally:
        del reader  # see above: it would go on decoding, as long as anybody holds the traceback
    return Frames(frames, places, num_frames, "decord")


def _as_tensor(batch: Any) -> Tensor:
    # The bridge is one switch for the whole process: somebody may have set it to torch. Without it, no copy either.
    return batch if isinstance(batch, Tensor) else torch.from_dlpack(batch.to_dlpack())


# ── PyAV ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_pyav(
    path: Source, choose: Callable[[int], Tensor], packets: Packets, num_threads: int, resize: Resize | None
) -> Frames:
    num_frames, announced = packets.num_frames, packets.num_frames + packets.num_missing
    while num_frames > 0:
        wanted, places = _sorted_unique(choose(num_frames), num_frames)
        try:
            frames = _decode(path, wanted, num_threads, resize)
        except _FewerFramesError as fewer:
            # Fewer each time, so this ends; in practice the second pass succeeds.
            num_frames = fewer.num_frames
            continue
        if num_frames < announced:
            log.warning("%s: only %d of its %d frames can be read", path, num_frames, announced)
        return Frames(frames, places, num_frames, "pyav", announced - num_frames)
    raise VideoReadError(path, "no frame can be decoded")


def _decode(path: Source, wanted: list[int], num_threads: int, resize: Resize | None) -> Tensor:
    """The wanted frames, (D, H, W, C).

    Raises:
        _FewerFramesError: the file ends before the last of them.
    """
    chunk, chunks = np.empty(0), []
    seen = found = held = 0
    with _opened(path) as container:
        stream = _video_stream(path, container)
        stream.thread_count = num_threads
        stream.thread_type = "NONE" if num_threads == 1 else "AUTO"
        for frame in _decoded(container, stream):
            if seen == wanted[found]:
                image = _as_rgb(path, frame, chunk.shape[1:])  # (H,W,C)
                if found == 0:
                    size = len(wanted) if resize is None else min(max(1, _CHUNK_BYTES // image.nbytes), len(wanted))
                    chunk = np.empty((size, *image.shape), np.uint8)  # (D,H,W,C)
                chunk[held] = image
                found, held = found + 1, held + 1
                if resize is not None and (held == len(chunk) or found == len(wanted)):
                    chunks.append(resize(torch.from_numpy(chunk[:held].copy())))
                    held = 0
                if found == len(wanted):
                    return torch.from_numpy(chunk) if resize is None else torch.cat(chunks)
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
            if not frame.is_corrupt:
                yield frame


def _as_rgb(path: Source, frame: av.VideoFrame, shape: tuple[int, ...]) -> np.ndarray:
    """RGB (H, W, C), upright, and of the first frame's shape, if any, where the resolution changes in mid-stream."""
    quarters, rest = divmod(frame.rotation, 90)  # counter-clockwise, as in numpy
    if rest or abs(quarters) > 4:  # a rotten header
        quarters = 0
    try:
        image = np.rot90(frame.to_ndarray(format="rgb24"), quarters)
        if shape and image.shape != shape:
            height, width = shape[:2] if quarters % 2 == 0 else shape[1::-1]
            image = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), quarters)
    except (av.FFmpegError, ValueError) as error:
        _fail(path, error)
    return image


# ── both ────────────────────────────────────────────────────────────────────────────────────────────────────


def _look_inside(path: Source) -> Packets:
    with _opened(path) as container:
        stream = _video_stream(path, container)
        try:
            return look_through_packets(container, stream)
        except (av.FFmpegError, ValueError) as error:
            _fail(path, error)


def _opened(path: Source) -> Any:
    try:
        return av.open(for_ffmpeg(path), **_OPEN_OPTIONS)
    except (av.FFmpegError, ValueError, OSError) as error:
        _fail(path, error)


def _video_stream(path: Source, container: Any) -> VideoStream:
    """The stream that FFmpeg (and with it decord) takes for the main one, cover pictures left aside."""
    stream = container.streams.best("video")
    is_cover = stream is not None and stream.disposition & av.stream.Disposition.attached_pic
    if stream is not None and stream.codec_context is not None and not is_cover:
        return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoReadError(path, f"no video stream that FFmpeg can decode (streams: {', '.join(kinds) or 'none'})")


def _fail(path: Source, error: Exception) -> NoReturn:
    reason = getattr(error, "strerror", None) or _first_line(error)
    raise VideoReadError(path, reason) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    # decord puts the time, its own source lines, the path or the check that failed before its message.
    return re.sub(r"^(\[.*?\] ?|Check failed: .*? \(\S+ vs\. \S+\) )", "", re.sub(r"^.*\.cc:\d+: ", "", line))
