"""An uploaded file becomes views or windows, in a process that can be killed: a crash is an error of one file.

Views come back whole. Windows come one after the other through a named pipe, which fills up and so lets the decoder
wait for the engine::

    FileFrames ─▶ frame_windows ─▶ frames that clips show, once each ─ pipe ─▶ Window ─▶ Timeline
    ╰────────────────── process ──────────────────────────────────╯           ╰──── thread ────╯
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import secrets
import select
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

from octvideo.serving.limits import Limits
from octvideo.serving.uploads import Refusal
from octvideo.video import (
    FileFrames,
    TimedFrame,
    VideoReadError,
    VideoViews,
    ViewSettings,
    Window,
    decode_views,
    frame_windows,
)
from octvideo.video.isolated import Alive, IsolatedPool, Outcome
from octvideo.video.untrusted import TooLongError, check_untrusted
from octvideo.video.windows import window_clips

log = logging.getLogger("octvideo.serving")

_LOOK_SEC = 0.1
_PIPE_BYTES = 2**20
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class ViewsWanted:
    """What a process is to decode for /predict."""

    path: str
    settings: ViewSettings
    max_length_sec: float


@dataclass(frozen=True)
class WindowsWanted:
    """What a process is to decode for /timeline.

    Args:
        pipe: path of a named pipe to write windows to.
        max_windows: after which it is too much.
    """

    path: str
    settings: ViewSettings
    max_length_sec: float
    window_sec: float | None
    stride_sec: float | None
    max_windows: int
    pipe: str


@dataclass(frozen=True)
class _Refused:
    """Why there is nothing: a `Refusal`, told by the process."""

    status: int
    reason: str


@dataclass(frozen=True)
class VideoEnd:
    """What is known of a video when its last window has come.

    Args:
        cuts_sec: where shots begin.
        trouble: why not all of it could be read; empty where it could.
    """

    cuts_sec: list[float]
    trouble: str


class Decoders:
    """Processes that decode; each thread that asks takes one, or waits for it.

    Args:
        num_processes: at once.
        folder: of the server alone, for pipes.
        limits: of the server.
    """

    def __init__(self, num_processes: int, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._free: SimpleQueue[IsolatedPool[Any]] = SimpleQueue()
        how: dict[str, Any] = {"timeout_s": limits.decode_sec, "memory_bytes": limits.decode_bytes}
        self._pools = [IsolatedPool[Any](decode_upload, num_processes=1, **how) for _ in range(num_processes)]
        for pool in self._pools:
            self._free.put(pool)

    def start(self) -> None:
        """Starts the processes, which takes seconds, so that no request waits for it.

        Raises:
            RuntimeError: they can't be started.
        """
        for pool in self._pools:
            list(pool.run([None]))

    def close(self) -> None:
        """Ends the processes that nobody uses."""
        with contextlib.suppress(Empty):
            while True:
                self._free.get_nowait().close()

    def views(self, path: str, settings: ViewSettings, watch: Callable[[], None]) -> VideoViews:
        """All views of a video.

        Args:
            path: of the upload.
            settings: which views.
            watch: called now and then; what it raises ends the work.

        Raises:
            Refusal: the video can't be read, or may not be.
        """
        deadline: float | None = None

        def look(*_: object) -> None:
            nonlocal deadline
            watch()
            deadline = deadline or time.monotonic() + self._limits.decode_sec
            if time.monotonic() > deadline:
                raise Refusal(422, f"the video takes more than {self._limits.decode_sec:g} s to decode")

        frames, places, boxes = self._run(ViewsWanted(path, settings, self._limits.max_length_sec), watch, look)
        return VideoViews(torch.from_numpy(frames), places, boxes)

    @contextlib.contextmanager
    def windows(
        self,
        path: str,
        settings: ViewSettings,
        window_sec: float | None,
        stride_sec: float | None,
        watch: Callable[[], None],
    ) -> Iterator[IncomingWindows]:
        """The windows of a video, decoded while they are taken, until the block ends.

        Args:
            path, settings, watch: see `views`.
            window_sec, stride_sec: see `frame_windows`.
        """
        pipe = self._folder / secrets.token_hex(16)
        os.mkfifo(pipe, 0o600)
        incoming = IncomingWindows(os.open(pipe, os.O_RDWR | os.O_CLOEXEC), watch)
        how = (self._limits.max_length_sec, window_sec, stride_sec, self._limits.max_windows, str(pipe))
        wanted = WindowsWanted(path, settings, *how)

        def look(*_: object) -> None:
            watch()
            if incoming.is_closed:
                raise Refusal(499, "nobody takes the windows")

        def work() -> None:
            try:
                incoming.finish(self._run(wanted, look, look))
            except BaseException as error:  # raised where the windows are taken
                incoming.finish(error)

        thread = threading.Thread(target=work, name="octvideo-windows", daemon=True)
        thread.start()
        try:
            yield incoming
        finally:
            incoming.is_closed = True
            thread.join()
            incoming.close()
            pipe.unlink(missing_ok=True)

    def _run(self, item: Any, watch: Callable[[], None], look: Callable[..., None]) -> Any:
        """What a process makes of an item."""
        pool = self._take(watch)
        try:
            ((_, outcome),) = pool.run([item], tell=look)
        finally:
            self._free.put(pool)
        return _value_of(outcome)

    def _take(self, watch: Callable[[], None]) -> IsolatedPool[Any]:
        while True:
            watch()
            with contextlib.suppress(Empty):
                return self._free.get(timeout=_LOOK_SEC)


def _value_of(outcome: Outcome) -> Any:
    """What the process made.

    Raises:
        Refusal: it made nothing.
    """
    if outcome.ending == "returned":
        if isinstance(outcome.value, _Refused):
            raise Refusal(outcome.value.status, outcome.value.reason)
        return outcome.value
    log.warning("a video could not be decoded: %s%s", outcome.reason, f"\n{outcome.details}" if outcome.details else "")
    endings = {"timeout": "its decoder hangs", "crashed": "its decoder crashed"}
    endings["out of memory"] = "decoding it takes too much memory"
    raise Refusal(422, f"can't read the video: {endings.get(outcome.ending, 'its decoder failed')}")


class IncomingWindows:
    """Windows out of a pipe, in order; to be iterated over once.

    Args:
        descriptor: of the pipe, open for reading and writing, so that it has no end of its own.
        watch: see `Decoders.views`.

    `end` is known when the last one has come.
    """

    def __init__(self, descriptor: int, watch: Callable[[], None]) -> None:
        self._descriptor, self._watch = descriptor, watch
        self._reading = threading.Lock()
        self._finished = threading.Event()
        self._last: Any = None
        self.is_closed = False
        self.end: VideoEnd | None = None

    def finish(self, value: Any) -> None:
        """Says that nothing more will be written: the value of the process, or the error."""
        self._last = value
        self._finished.set()

    def close(self) -> None:
        """Closes the pipe, also under a thread that still waits for windows: it gets no more."""
        self.is_closed = True
        with self._reading:
            os.close(self._descriptor)

    def __iter__(self) -> Generator[Window, None, None]:
        frames: dict[int, TimedFrame] = {}
        while (message := self._message()) is not None:
            index, start_sec, end_sec, first, times, time_base, new = message
            for number in [number for number in frames if number < first]:
                del frames[number]
            for number, image in new.items():
                frames[number] = _ready_frame(times[number - first], image)
            held = [frames.get(first + n) or _unseen_frame(time) for n, time in enumerate(times[:-1])]
            yield Window(index, start_sec, end_sec, first, held, times, Fraction(*time_base))
        if isinstance(self._last, BaseException):
            raise self._last
        self.end = self._last

    def _message(self) -> Any:
        """The next one; None at the end."""
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        content = self._read(_LENGTH.unpack(head)[0])
        return None if content is None else pickle.loads(content)

    def _read(self, num_bytes: int) -> bytearray | None:
        content = bytearray(num_bytes)
        view = memoryview(content)
        while view:
            # In this order: what was written before the end is there to be read.
            is_last = self._finished.is_set()
            with self._reading:
                if self.is_closed:
                    return None
                if select.select([self._descriptor], [], [], 0 if is_last else _LOOK_SEC)[0]:
                    view = view[os.readv(self._descriptor, [view]) :]
                    continue
            if is_last:
                return None
            self._watch()
        return content


def _ready_frame(time_units: int, image: np.ndarray) -> TimedFrame:
    return TimedFrame(time_units, lambda: torch.from_numpy(image))


def _unseen_frame(time_units: int) -> TimedFrame:
    frame = TimedFrame(time_units, torch.Tensor)
    frame.forget()
    return frame


# ── in the process ──────────────────────────────────────────────────────────────────────────────────────────


def decode_upload(item: ViewsWanted | WindowsWanted | None, alive: Alive) -> Any:
    """Frames, places and boxes of all views, or a `VideoEnd` when all windows are in the pipe; work for `IsolatedPool`.
    Of None it makes nothing.

    Errors say nothing of the path, which is no client's business.
    """
    if item is None:
        return None
    try:
        check_untrusted(item.path, max_length_sec=item.max_length_sec)
        if isinstance(item, ViewsWanted):
            views = decode_views(item.path, item.settings, on_frames=alive)
            return views.frames.numpy(), views.places, views.boxes
        return _send_windows(item, alive)
    except TooLongError as error:
        return _Refused(413, f"the video is too long: {error.reason}")
    except VideoReadError as error:
        return _Refused(422, f"can't read the video: {error.reason.replace(item.path, 'upload')}")


def _send_windows(item: WindowsWanted, alive: Alive) -> VideoEnd | _Refused:
    descriptor = os.open(item.pipe, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(AttributeError, OSError):  # Linux; else a pipe keeps its size
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[attr-defined]
    try:
        with FileFrames(item.path, item.settings.short_side_px) as source:
            windows = frame_windows(source, item.settings, window_sec=item.window_sec, stride_sec=item.stride_sec)
            shown: set[int] = set()
            for window in windows:
                if window.index >= item.max_windows:
                    return _Refused(422, f"the timeline has more than {item.max_windows} windows: take a longer stride")
                if window.start_sec > item.max_length_sec:
                    return _Refused(413, f"the video is too long: it may last {item.max_length_sec:g} s")
                shown = {number for number in shown if number >= window.first}
                wanted = set((window_clips(window, item.settings).unique() + window.first).tolist()) - shown
                new = {number: window.frames[number - window.first].image.numpy() for number in sorted(wanted)}
                shown |= wanted
                base = (window.time_base.numerator, window.time_base.denominator)
                times = list(window.times)
                message = (window.index, window.start_sec, window.end_sec, window.first, times, base, new)
                _write(descriptor, pickle.dumps(message, 5), alive)
                del window, new, message
            return VideoEnd([round(cut, 6) for cut in source.cuts_sec], source.trouble)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes, alive: Alive) -> None:
    """Writes a message; to wait for a slow reader is to be alive."""
    view = memoryview(_LENGTH.pack(len(content)) + content)
    while view:
        if select.select([], [descriptor], [], 0.5)[1]:
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(descriptor, view) :]
        alive()
