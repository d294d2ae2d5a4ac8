"""Frames with decord 0.6 (FFmpeg 4.1), for files that it gets right (packets.py says which).

No reader outlives a call: an idle one goes on decoding in the background (94 MB grew to 2.35 GB in 8 s), and one
opened before a fork hangs the child.
"""

from __future__ import annotations

import torch
from torch import Tensor

import decord  # isort: skip  (before torch, both crash)
from decord._ffi.base import DECORDLimitReachedError  # isort: skip

from octvideo.video.frames import FrameCollector, ReaderFailure, Resize, first_line
from octvideo.video.source import Source, for_ffmpeg

# Failures reach the caller as exceptions: decord's FFmpeg need not write each rotten block to the terminal too.
decord.logging.set_level(decord.logging.QUIET)

_ERRORS = (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, UnicodeError)


def read_decord(
    path: Source, wanted: list[int], *, num_frames: int, frame_bytes: int, num_threads: int, resize: Resize | None
) -> Tensor:
    """The wanted frames, (D, H, W, C) or as `resize` makes them.

    Args:
        path: of the video; or its content.
        wanted: frame numbers, sorted, each once.
        num_frames: of the video, by its packets.
        frame_bytes: of one frame at full size.
        num_threads: of the decoder.
        resize: see `read_frames`.

    Raises:
        ReaderFailure: decord can't.
    """
    collector = FrameCollector(len(wanted), resize)
    size = collector.chunk_frames(frame_bytes)
    for start in range(0, len(wanted), size):
        # A reader a chunk: one that waits decodes ahead without end: of 10,883 frames of 1080p, it held 22 GB.
        reader = _open(path, num_frames, num_threads)
        try:
            batch = _batch(reader, wanted[start : start + size])
        finally:
            del reader  # before the frames are resized, and where somebody holds the traceback
        collector.add(batch)
        del batch
    return collector.frames()


def _open(path: Source, num_frames: int, num_threads: int) -> decord.VideoReader:
    try:
        # fault_tol: a frame that can't be decoded is an error. By default decord fills the gap with a copy of
        # another frame and says nothing.
        reader = decord.VideoReader(for_ffmpeg(path), ctx=decord.cpu(0), num_threads=num_threads, fault_tol=1e-9)
    except _ERRORS as error:
        raise ReaderFailure(f"decord fails: {first_line(error)}") from error
    if len(reader) != num_frames:
        raise ReaderFailure("decord counts other frames")
    return reader


def _batch(reader: decord.VideoReader, wanted: list[int]) -> Tensor:
    try:
        batch = reader.get_batch(wanted)
    except _ERRORS as error:
        raise ReaderFailure(f"decord fails: {first_line(error)}") from error
    # The bridge is one switch for the whole process: somebody may have set it to torch. Without it, no copy either.
    return batch if isinstance(batch, Tensor) else torch.from_dlpack(batch.to_dlpack())
