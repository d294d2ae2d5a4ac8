"""Frames of a stream or a camera, as they come: the newest ones, with times that only increase.

A thread reads, decodes and makes frames small; whoever takes them gets the newest that a queue of some seconds holds::

    connection ─ packets ─ decoded ─ small ─▶ NewestFrames ─▶ runs of frames without a gap
        ▲                    thread         │ full: the oldest are dropped, which makes a gap
        └── cut, stalled: again, after a while

Each run is a `FrameSource` of its own, so that no window of frames spans a gap. Times are those of the stream, as long
as they make sense; over a gap, and where they do not, the clock says when frames came.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

import av
import numpy as np
import torch

from octvideo.stores import shown
from octvideo.video.addresses import Transport, open_address, reason_of
from octvideo.video.frames import VideoReadError
from octvideo.video.pyav_file import Colours, decoded_frames, drained_frames, main_stream, set_threads
from octvideo.video.streaming import TimedFrame, resized
from octvideo.video.transforms import short_side_size

log = logging.getLogger("octvideo.video")

TIME_BASE = Fraction(1, 90_000)  # that of RTP and MPEG-TS
# A step between frames that is longer is a gap, unless frames came as slowly before.
_GAP_SEC, _GAP_STEPS = 2.0, 4.0
_BACK_SEC = 1.0  # a stream's clock that goes back so far has started again
_LEAST_SEC = 0.001
_FIRST_WAIT_SEC = 0.5
_STEADY_SEC = 10.0  # a connection that lasts so long ends a row of attempts
_WITHOUT_TIMES = frozenset({"mpjpeg", "mjpeg", "h264", "hevc", "m4v"})
_NO_PICTURE = 3.0  # times the timeout: data come, but none that give a picture


class Watch:
    """The time."""

    def seconds(self) -> float:
        """On a clock that is never set."""
        return time.monotonic()

    def wall(self) -> float:
        """Since 1970, UTC."""
        return time.time()

    def wait(self, seconds: float, unless: threading.Event) -> None:
        """Waits, unless the event is set."""
        unless.wait(seconds)


@dataclass(frozen=True)
class Arrival:
    """A picture out of the decoder.

    Args:
        time_sec: by the stream's own clock; None where it has no time.
        seconds: by the watch, when the packet came that completed it.
        wall: likewise, since 1970.
        rgb: gives uint8 (H, W, 3), upright.
    """

    time_sec: float | None
    seconds: float
    wall: float
    rgb: Callable[[], np.ndarray] = field(repr=False)


class Connection(Protocol):
    """One opened stream.

    Args:
        rate: frames per second, as it states.
        has_end: it states a duration, so that its end is no cut.
    """

    rate: Fraction | None
    has_end: bool

    def __iter__(self) -> Iterator[Arrival | None]:
        """Pictures; None for a packet that gives none. Raises a VideoReadError when it is cut."""
        ...

    def close(self) -> None: ...


class AvConnection:
    """A `Connection` by PyAV.

    Raises:
        VideoReadError: it can't be opened, or holds no video.
    """

    def __init__(self, url: str, timeout_sec: float, transport: Transport, watch: Watch) -> None:
        self._url, self._timeout_sec, self._watch = url, timeout_sec, watch
        self._container = open_address(url, timeout_sec=timeout_sec, transport=transport)
        try:
            self._stream: Any = main_stream(shown(url), self._container)
            set_threads(self._stream, 1)  # frames that threads hold back would come late
        except BaseException:
            self._container.close()
            raise
        # For formats without times FFmpeg makes some up, as of 25 frames a second.
        self._has_times = self._container.format.name not in _WITHOUT_TIMES
        stated = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        self.rate: Fraction | None = stated if self._has_times else None
        self.has_end = self._container.duration is not None
        self._colours, self._came = Colours(shown(url)), (watch.seconds(), watch.wall())  # of the newest packet

    def close(self) -> None:
        """Closes it; by the thread that reads."""
        self._container.close()

    def __iter__(self) -> Iterator[Arrival | None]:
        packets = self._container.demux()  # of all streams: sound that comes without pictures must not keep us
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.FFmpegError, ValueError) as error:
                reason = reason_of(self._url, error, self._timeout_sec)
                yield from self._held_back()
                raise VideoReadError(shown(self._url), reason) from None
            self._came = self._watch.seconds(), self._watch.wall()
            frames = decoded_frames(packet)[0] if packet.size and packet.stream == self._stream else []
            if not frames:
                yield None
            for frame in frames:
                yield self._arrival(frame, *self._came)
        yield from self._held_back()

    def _held_back(self) -> Iterator[Arrival]:
        for frame in drained_frames(self._stream):
            yield self._arrival(frame, *self._came)

    def _arrival(self, frame: av.VideoFrame, seconds: float, wall: float) -> Arrival:
        time_sec = None
        if self._has_times and frame.pts is not None and frame.time_base is not None:
            time_sec = float(frame.pts * frame.time_base)
        return Arrival(time_sec, seconds, wall, lambda: self._colours.rgb(frame, ()))


class LiveFrame(TimedFrame):
    """A `TimedFrame` that has come.

    Args:
        time: since the first frame, in units of `TIME_BASE`.
        image: uint8 (h, w, 3).
        seconds, wall: see `Arrival`.
    """

    __slots__ = ("num_bytes", "seconds", "wall")

    def __init__(self, time: int, image: torch.Tensor, seconds: float, wall: float) -> None:
        super().__init__(time, lambda: image)
        self.num_bytes, self.seconds, self.wall = self.image.nbytes, seconds, wall


Mark = Literal["gap", "end"]


class NewestFrames:
    """A queue that is never full: the oldest frames make room.

    Args:
        most_sec: of frames, from the oldest to the newest.
        most_bytes: likewise.
    """

    def __init__(self, most_sec: float, most_bytes: int) -> None:
        self._most_units, self._most_bytes = round(most_sec / TIME_BASE), most_bytes
        self._items: deque[LiveFrame | Mark] = deque()
        self._times: deque[int] = deque()  # of the frames among them
        self._bytes = 0
        self._changed, self._is_cut = threading.Condition(), False
        self.num_dropped, self.newest, self.newest_came = 0, 0, 0.0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: LiveFrame | Mark) -> None:
        """Adds a frame, or that there is a gap or an end after the ones before."""
        with self._changed:
            if isinstance(item, str):
                if item == "end" or not self._items or self._items[-1] != "gap":
                    self._items.append(item)
            else:
                self._items.append(item)
                self._times.append(item.time)
                self._bytes, self.newest, self.newest_came = self._bytes + item.num_bytes, item.time, item.seconds
                while len(self._times) > 1 and (
                    self._bytes > self._most_bytes or item.time - self._times[0] > self._most_units
                ):
                    self.num_dropped += isinstance(self._popped(), LiveFrame)
                    self._is_cut = True
            self._changed.notify_all()

    def get(self, wait_sec: float) -> LiveFrame | Mark | None:
        """The oldest item; None where there is none for so long."""
        with self._changed:
            if self._is_cut:  # before the first frame that is left
                self._is_cut = False
                return "gap"
            if not self._items:
                self._changed.wait(wait_sec)
            return self._popped() if self._items and not self._is_cut else None

    def _popped(self) -> LiveFrame | Mark:
        item = self._items.popleft()
        if isinstance(item, LiveFrame):
            self._times.popleft()
            self._bytes -= item.num_bytes
        return item


class Moments:
    """Times of frames since the first one, which increase whatever the stream's clock does.

    They are the stream's, plus a constant. Where its clock starts again, or jumps, and over every gap, the constant
    changes so that the next time is when the frame came.
    """

    def __init__(self) -> None:
        self._constant: float | None = None
        self._last: float | None = None
        self._step, self._is_new = 0.0, True

    def cut(self) -> None:
        """What follows is of another connection."""
        self._constant, self._is_new = None, True

    def of(self, time_sec: float | None, came_sec: float) -> tuple[float, bool]:
        """A frame's time, and whether it follows on the last without a gap.

        Args:
            time_sec: by the stream's clock, None where it has none.
            came_sec: since the first frame came.
        """
        last = came_sec if self._last is None else self._last
        now = came_sec if self._last is None else max(came_sec, last + _LEAST_SEC)
        follows, self._is_new = not self._is_new, False
        if self._constant is not None and time_sec is not None:
            found = time_sec + self._constant
            jump = found - last
            if jump <= -_BACK_SEC or (self._is_gap(jump) and came_sec - last < jump / 2):
                # Its clock has jumped, and not the time.
                self._constant, found, follows = now - time_sec, now, False
            else:
                found = max(found, last + _LEAST_SEC)
        elif self._constant is not None:
            found = last + max(self._step, _LEAST_SEC)
        else:
            found = now
            self._constant = None if time_sec is None else now - time_sec
        if follows:
            follows = not self._is_gap(found - last)
            self._step = found - last
        self._last = found
        return found, follows

    def _is_gap(self, step: float) -> bool:
        return bool(self._step) and step > max(_GAP_SEC, _GAP_STEPS * self._step)


class FrameRun:
    """Frames that follow each other without a gap; see `FrameSource`. To be iterated over once.

    Args:
        name: for messages.
        rate: frames per second, as the stream states.
        first: frame.
        take: gives the next item.
    """

    time_base = TIME_BASE

    def __init__(
        self, name: str, rate: Fraction | None, first: LiveFrame, take: Callable[[], LiveFrame | Mark]
    ) -> None:
        self.name, self.rate = name, rate
        self._next: LiveFrame | None = first
        self._take, self._last, self._step = take, first.time, 0
        self.ended: Mark | None = None

    @property
    def end(self) -> int:
        """See `FrameSource`. The last frame stays as long as the one before it did."""
        return self._last + (self._step or round(1 / (Fraction(self.rate or 25) * TIME_BASE)))

    def __iter__(self) -> Iterator[LiveFrame]:
        while self._next is not None:
            frame, self._next = self._next, None
            yield frame
            del frame
            if self.ended is None:
                item = self._take()
                if isinstance(item, str):
                    self.ended = item
                else:
                    self._next, self._step, self._last = item, item.time - self._last, item.time


class LiveFrames:
    """Runs of frames of a stream or a camera. To be closed, by `with`.

    Args:
        url: of the stream, or `camera`.
        short_side_px: that frames are resized to.
        transport: of RTSP.
        timeout_sec: for opening, and for each read.
        longest_wait_sec: between attempts to connect again.
        give_up_sec: without a frame, after which it is over. Before the first frame nothing is tried again.
        for_sec: from the first frame, after which it is over; None is for ever.
        until_wall: likewise, in seconds since 1970.
        keep_sec: of frames that wait at most.
        keep_bytes: likewise.
        say: gets a line for each cut, and for all else that happens to the stream.
        connect: opens the stream, again and again.
        watch: the time.
        beside: reads in a thread. Otherwise a frame is read when one is wanted, or by `next(steps)`.

    `runs` gives them, `error` says at the end why it is over, if by no one's will.

    Example:
        >>> with LiveFrames("rtsp://camera/1", 256) as live:  # doctest: +SKIP
        ...     for run in live.runs():
        ...         for frame in run:
        ...             print(float(frame.time * run.time_base), frame.image.shape)
    """

    def __init__(
        self,
        url: str,
        short_side_px: int,
        *,
        transport: Transport = "tcp",
        timeout_sec: float = 10.0,
        longest_wait_sec: float = 30.0,
        give_up_sec: float = 300.0,
        for_sec: float | None = None,
        until_wall: float | None = None,
        keep_sec: float = 10.0,
        keep_bytes: int = 512 * 2**20,
        say: Callable[[str], None] = log.warning,
        connect: Callable[[], Connection] | None = None,
        watch: Watch | None = None,
        beside: bool = True,
    ) -> None:
        self.name, self.watch = shown(url), watch or Watch()
        self.queue = NewestFrames(keep_sec, keep_bytes)
        self.num_frames = self.num_disconnects = 0
        self.error: VideoReadError | None = None
        self._connect = connect or (lambda: AvConnection(url, timeout_sec, transport, self.watch))
        self._short_side_px, self._timeout_sec, self._say = short_side_px, timeout_sec, say
        self._longest_wait_sec, self._give_up_sec, self._for_sec = longest_wait_sec, give_up_sec, for_sec
        self._until_wall = math.inf if until_wall is None else until_wall
        self._moments = Moments()
        self._rate: Fraction | None = None
        self._first_sec = self._last_sec = self.watch.seconds()
        self._shape: tuple[int, ...] = ()
        self._is_over = threading.Event()
        self._failure: BaseException | None = None
        self.steps = self._read()
        self._thread: threading.Thread | None = None
        if beside:  # a daemon: FFmpeg may be in a read that ends by its timeout only
            self._thread = threading.Thread(target=self._work, name="octvideo-live", daemon=True)
            self._thread.start()

    def __enter__(self) -> LiveFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread is None:
            self.steps.close()
        else:
            self._thread.join(timeout=1)

    @property
    def newest_sec(self) -> float:
        """Time of the newest frame, since the first one."""
        return float(self.queue.newest * TIME_BASE)

    def runs(self) -> Iterator[FrameRun]:
        """Frames from gap to gap, each run as soon as it has a frame.

        Raises:
            VideoReadError: before the first frame: it can't be read.
        """
        item = self._take()
        while item != "end":
            if isinstance(item, str):
                item = self._take()
                continue
            run = FrameRun(self.name, self._rate, item, self._take)
            yield run
            for _ in run:
                pass
            item = run.ended or "end"
        if self._failure is not None:
            raise self._failure
        if self.error is not None and not self.num_frames:
            raise self.error

    def _take(self) -> LiveFrame | Mark:
        while True:
            if self._thread is None and not len(self.queue):
                next(self.steps, None)
            item = self.queue.get(0.2 if self._thread is not None else 0)
            now, wall = self.watch.seconds(), self.watch.wall()
            if isinstance(item, LiveFrame):
                now, wall = item.seconds, item.wall
            end_sec = math.inf if self._for_sec is None or not self.num_frames else self._first_sec + self._for_sec
            if now >= end_sec or wall >= self._until_wall:
                return "end"
            if item is not None:
                return item

    def _work(self) -> None:
        for _ in self.steps:
            pass

    def _read(self) -> Generator[None, None, None]:
        """Connects and reads, until it is over; a step for each packet and each wait."""
        attempt = 0
        try:
            while not self._is_over.is_set():
                began, frames = self.watch.seconds(), self.num_frames
                try:
                    with contextlib.closing(self._connect()) as connection:
                        yield from self._read_connection(connection)
                        if self._is_over.is_set() or connection.has_end:
                            return
                    reason = "the connection has ended"
                except VideoReadError as error:
                    reason = error.reason
                now = self.watch.seconds()
                waited = now - self._last_sec
                if not self.num_frames or waited >= self._give_up_sec:
                    given_up = f"no frame for {waited:.0f} s, given up: " if self.num_frames else ""
                    self.error = VideoReadError(self.name, given_up + reason)
                    return
                if self.num_frames > frames:
                    self.num_disconnects += 1
                    self._moments.cut()
                    self.queue.put("gap")
                    if now - began >= _STEADY_SEC:
                        attempt = 0
                wait_sec = min(wait_before(attempt, self._longest_wait_sec), max(self._give_up_sec - waited, 0.1))
                attempt += 1
                self._say(f"{self.name}: {reason}; connecting again in {wait_sec:.1f} s")
                self.watch.wait(wait_sec, self._is_over)
                yield
        except BaseException as error:  # for the one who takes frames
            self._failure = None if isinstance(error, GeneratorExit) else error
            if isinstance(error, GeneratorExit):
                raise
        finally:
            self.queue.put("end")

    def _read_connection(self, connection: Connection) -> Generator[None, None, None]:
        began, is_again = self.watch.seconds(), bool(self.num_frames)
        self._rate = connection.rate
        for arrival in connection:
            if self._is_over.is_set():
                return
            if arrival is not None:
                if is_again:
                    self._say(f"{self.name}: connected again after {arrival.seconds - self._last_sec:.1f} s")
                    is_again = False
                began = arrival.seconds
                self._keep(arrival)
            elif self.watch.seconds() - began > _NO_PICTURE * self._timeout_sec:
                raise VideoReadError(self.name, f"no picture for {_NO_PICTURE * self._timeout_sec:g} s")
            yield

    def _keep(self, arrival: Arrival) -> None:
        """Makes a frame small, and puts it into the queue."""
        try:
            image = torch.from_numpy(np.ascontiguousarray(arrival.rgb()))
        except VideoReadError:  # as one that can't be decoded
            return
        small = resized(image, short_side_size(image.shape[0], image.shape[1], self._short_side_px))
        if not self.num_frames:
            self._first_sec = arrival.seconds
        time_sec, follows = self._moments.of(arrival.time_sec, arrival.seconds - self._first_sec)
        if self._shape and small.shape != self._shape:
            was, now = (f"{shape[1]}x{shape[0]}" for shape in (self._shape, small.shape))
            self._say(f"{self.name}: frames have another shape, {now} in place of {was}: windows begin anew")
            follows = False
        if self.num_frames and not follows:
            self.queue.put("gap")
        self._shape, self._last_sec = tuple(small.shape), arrival.seconds
        self.num_frames += 1
        self.queue.put(LiveFrame(round(time_sec / TIME_BASE), small, arrival.seconds, arrival.wall))


def wait_before(attempt: int, longest_sec: float) -> float:
    """Seconds to wait before another attempt to connect: twice as long each time, less up to a half by chance.

    By chance, so that many readers of a server that comes back do not all come at once.
    """
    return min(_FIRST_WAIT_SEC * 2.0 ** min(attempt, 30), longest_sec) * random.uniform(0.5, 1.0)
