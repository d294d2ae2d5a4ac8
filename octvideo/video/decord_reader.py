"""Frames with decord 0.6 (FFmpeg 4.1), for files that it gets right (packets.py says which).

No reader outlives a call: an idle one goes on decoding in the background and fills the memory, and one opened before a
fork hangs the child.

Of a damaged file, decord may wait for frames that never come: SkipFrames asks for them again and again, or two of its
threads wait for each other. Its decoder has threads of its own, so one that asks is hardly busy: one that is busy for
seconds will never be answered. Nor is the file slow where nothing happens for seconds: its packets have just been read.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octvideo.files import one_line
from octvideo.video.frames import FrameCollector, ReaderFailure, RemoteVideo, Resize, Source, for_ffmpeg
from octvideo.video.pyav_reader import PyavVideo

# decord offers its library's names to all that are loaded later, among them a `__cxa_thread_atexit` of its own, by
# which programs with threads of other libraries ended in "free(): invalid pointer". Here nothing else sees them.
_everywhere, ctypes.RTLD_GLOBAL = ctypes.RTLD_GLOBAL, ctypes.RTLD_LOCAL  # type: ignore[misc]
try:
    import decord
    from decord._ffi.base import DECORDLimitReachedError
finally:
    ctypes.RTLD_GLOBAL = _everywhere  # type: ignore[misc]

# Failures reach the caller as exceptions: decord's FFmpeg need not write each rotten block to the terminal too.
decord.logging.set_level(decord.logging.QUIET)

# A thread that waits for a chunk of frames is hardly busy; its decoder's threads are busy for seconds.
_BUSY_S = 3.0
_IDLE_S = 6.0
_LOOK_S = 0.5

log = logging.getLogger("octvideo.video")

_ERRORS = (decord.DECORDError, DECORDLimitReachedError, RuntimeError, AssertionError, UnicodeError)

_left: list[_Call] = []  # calls that did not come back


def read_decord(video: PyavVideo, wanted: list[int], resize: Resize | None) -> Tensor:
    """The wanted frames, (D, H, W, C) or as `resize` makes them.

    Args:
        video: the file, whose packets PyAV has looked through.
        wanted: frame indices, sorted, each once.
        resize: see `read_frames`.

    Raises:
        ReaderFailure: decord can't.
    """
    if isinstance(video.path, RemoteVideo):  # decord would hold all of it, for each chunk anew
        raise ReaderFailure("decord reads no file behind an address that is this large")
    collector = FrameCollector(len(wanted), resize)
    size = collector.chunk_frames(video.frame_bytes)
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        collector.add(_watched(partial(_read, video.path, chunk, video.packets.num_frames)))
    return collector.frames()


def _read(path: Source, wanted: list[int], num_frames: int) -> Any:
    # One reader for each chunk: a reader that waits decodes ahead without end, into memory.
    # fault_tol: a frame that can't be decoded is an error. By default decord fills the gap with a copy of another
    # frame and says nothing.
    reader = decord.VideoReader(for_ffmpeg(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)
    if len(reader) != num_frames:
        raise ReaderFailure("decord counts other frames")
    return reader.get_batch(wanted)


def _watched(read: Callable[[], Any]) -> Tensor:
    call = _Call(read)
    call.start()
    cpu_seconds, idle_seconds = _cpu_seconds(), 0.0
    while call.is_alive():
        call.join(_LOOK_S)
        before, cpu_seconds = cpu_seconds, _cpu_seconds()
        # Counted in looks, since a process that is stopped does not look either.
        idle_seconds = idle_seconds + _LOOK_S if cpu_seconds - before < 0.01 * _LOOK_S else 0.0
        if call.is_alive() and (call.cpu_seconds() > _BUSY_S or idle_seconds > _IDLE_S):
            call.leave()
            raise ReaderFailure("decord waits for frames that do not come")
    if isinstance(call.error, _ERRORS):
        raise ReaderFailure(f"decord fails: {one_line(call.error)}") from call.error
    if call.error is not None:
        raise call.error
    # The bridge is one switch for the whole process: somebody may have set it to torch. Without it, no copy either.
    return call.batch if isinstance(call.batch, Tensor) else torch.from_dlpack(call.batch.to_dlpack())


def _cpu_seconds() -> float:
    """Of this process, without calls that it has left."""
    return time.process_time() - sum(call.cpu_seconds() for call in _left)


class _Call(threading.Thread):
    """Opens a file, reads and closes it; each of them may never end."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__(name="decord", daemon=True)
        self._read = read
        self._clock: int | None = None
        self.batch: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        with contextlib.suppress(AttributeError):  # macOS has no such clock
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self.batch = self._read()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the reader, which would go on decoding
            self.error = error

    def cpu_seconds(self) -> float:
        """That this thread has been busy, not those that decode for it."""
        try:
            return 0.0 if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # it has just ended
            return 0.0

    def leave(self) -> None:
        """Native code can't be stopped. It goes on until the process ends, in time that nothing else wants."""
        _left.append(self)
        log.warning("decord does not come back; its thread stays until this process ends (decoder 'auto' takes PyAV)")
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setscheduler(self.native_id or 0, os.SCHED_IDLE, os.sched_param(0))
