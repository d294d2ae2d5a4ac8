"""Frames with torchcodec, where it is installed (`pip install 'octvideo[torchcodec]'`) and finds FFmpeg's libraries.

It seeks by the times of keyframes, so it gets the files whose frames all have a time of their own and whose
keyframes are real ones. The time of each frame that it gives is held against the packets'.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.video.frames import FrameCollector, ReaderFailure, RemoteVideo, Resize, Source, VideoBytes
from octvideo.video.pyav_reader import PyavVideo

_LIBRARIES = (
    "FFmpeg's shared libraries (apt install ffmpeg; brew install ffmpeg; conda install ffmpeg; or on Linux those of "
    "PyAV: tools/link_ffmpeg.py)"
)


def read_torchcodec(video: PyavVideo, wanted: list[int], resize: Resize | None) -> Tensor:
    """The wanted frames, (D, H, W, C) or as `resize` makes them.

    Args:
        video: the file, whose packets PyAV has looked through.
        wanted: frame indices, sorted, each once.
        resize: see `read_frames`.

    Raises:
        ReaderFailure: torchcodec can't.
        UserError: it is not installed, or can't be loaded.
    """
    collector = FrameCollector(len(wanted), resize)
    size, packets = collector.chunk_frames(video.frame_bytes), video.packets
    reader = _open(video.path, video.index)
    if len(reader) != packets.num_frames:
        raise ReaderFailure("torchcodec counts other frames")
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        try:
            batch = reader.get_frames_at(chunk)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ReaderFailure(f"torchcodec fails: {one_line(error)}") from error
        times = [round(Fraction(seconds) / packets.time_base) for seconds in batch.pts_seconds.tolist()]
        if times != [packets.times[frame] for frame in chunk]:
            raise ReaderFailure("torchcodec gives frames of other times")
        collector.add(batch.data)
    return collector.frames()


def load_torchcodec() -> Any:
    """torchcodec's `VideoDecoder`.

    Raises:
        UserError: it is not installed, or can't be loaded.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except ModuleNotFoundError as error:
        if error.name != "torchcodec":
            raise _cannot_load(error) from error
        raise UserError(
            "decoder: got 'torchcodec', which is not installed: pip install 'octvideo[torchcodec]', and "
            f"{_LIBRARIES}; or take 'auto'"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise _cannot_load(error) from error
    _find_ffmpeg(VideoDecoder)
    return VideoDecoder


@functools.cache  # once it has been found
def _find_ffmpeg(decoder: Any) -> None:
    """Newer versions import without FFmpeg, and look for it at the first video."""
    try:
        decoder(b"no video")
    except (RuntimeError, ValueError) as error:
        if "Could not load libtorchcodec" in str(error):
            raise _cannot_load(error) from error


def _open(path: Source, stream: int) -> Any:
    decoder = load_torchcodec()
    source: Any
    if isinstance(path, RemoteVideo):
        source = path.file.reader()
    else:
        source = path.content if isinstance(path, VideoBytes) else str(Path(path).absolute())
    try:
        return decoder(source, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except (RuntimeError, ValueError, UnicodeError) as error:
        raise ReaderFailure(f"torchcodec fails: {one_line(error)}") from error


def _cannot_load(error: Exception) -> UserError:
    said = one_line(error).removesuffix(" Likely causes:")
    return UserError(
        f"decoder: got 'torchcodec', which can't be loaded ({said}). It needs {_LIBRARIES}, and the version that is "
        "made for this torch (https://github.com/pytorch/torchcodec#installing-torchcodec); or take decoder 'auto'"
    )
