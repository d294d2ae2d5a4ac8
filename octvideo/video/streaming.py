"""Frames from front to back, each once, with their times: of a file of any length in the same memory, or from anywhere.

`read_frames` knows a whole file before it decodes any of it. Here a frame comes as soon as it is decoded, and whoever
takes frames forgets them when they have served. Both give the same frames of a file, in the same pixels.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.video.bitstream import Bitstream
from octvideo.video.cuts import CutFinder, brightness_grid
from octvideo.video.frames import RemoteVideo, Source, VideoReadError, check_is_file, fetched, of_store, rgb_image
from octvideo.video.packets import look_through_packets
from octvideo.video.pyav_file import Colours, decoded_frames, drained_frames, main_stream, open_video, set_threads
from octvideo.video.transforms import resize, short_side_size

# Decoded frames that wait at full size, since most may never be wanted: 90 of 720p, two of 8K.
_WAITING_BYTES = 256 * 2**20
_CLOSE_SEC = 5.0
# Divides into the times of all usual frame rates, those of NTSC (30000/1001) included.
_FINE = Fraction(1, 360_360_000)


class TimedFrame:
    """A frame: when it is displayed, and its pixels, which are made small when they are wanted, and once.

    Args:
        time: in units of its source's `time_base`.
        make: gives uint8 (h, w, C); called at most once, by the thread that takes frames from the source.
    """

    __slots__ = ("__weakref__", "_image", "_make", "time")

    def __init__(self, time: int, make: Callable[[], Tensor]) -> None:
        self.time = time
        self._make: Callable[[], Tensor] | None = make
        self._image: Tensor | None = None

    @property
    def image(self) -> Tensor:
        """RGB of the source's short side, uint8 (h, w, C).

        Raises:
            VideoReadError: it can't be converted.
            ValueError: it was forgotten.
        """
        if self._image is None:
            if self._make is None:
                raise ValueError(f"the frame at {self.time} was forgotten: no clip shows it")
            self._image, self._make = self._make(), None
        return self._image

    def forget(self) -> None:
        """Lets the pixels go: only the time will be asked for."""
        self._image = self._make = None

    def make_small(self) -> None:
        """Makes the image, unless that was done or nobody will ask for it."""
        if self._make is not None:
            _ = self.image


class FrameSource(Protocol):
    """Frames in the order of display, their times increasing; all of one size.

    Args:
        name: for messages.
        time_base: unit of times, in seconds.
        rate: frames per second that the source states, if it does; it may be wrong.
        end: of the frame that came last, in units of `time_base`; at the earliest when all have come.
    """

    name: str
    time_base: Fraction
    rate: Fraction | None

    @property
    def end(self) -> int: ...

    def __iter__(self) -> Iterator[TimedFrame]: ...


class FileFrames:
    """The frames of a file; see `FrameSource`. To be closed, by `with`, and to be iterated over once.

    Times count from the start of the file, as players do. A frame that has no time, or none later than the one before,
    comes one frame of the stated rate after it. Where the resolution changes, all frames have that of the first. What
    can't be decoded is left out, as `read_frames` does; `num_missing` and `trouble` say so at the end.

    Args:
        path: of the video, or its address; or its content.
        short_side_px: that frames are resized to; None leaves them as they are.
        num_threads: of the decoder.
        container: of PyAV, opened already, of a video that is no file here; `path` is its name then.

    Raises:
        VideoReadError: it can't be opened, or holds no video. At the end: no frame can be decoded. On the way: its
            store gives no more of it.

    Example:
        >>> with FileFrames("film.mp4", 256) as frames:  # doctest: +SKIP
        ...     for frame in frames:
        ...         print(float(frame.time * frames.time_base), frame.image.shape)
    """

    def __init__(self, path: Source, short_side_px: int | None, *, num_threads: int = 1, container: Any = None) -> None:
        if container is None:
            path = fetched(path)
            check_is_file(path)
        self.name = str(path)
        self._path, self._short_side_px, self._num_threads = path, short_side_px, num_threads
        self._decoding, self._is_closed, self._given = threading.Lock(), False, container
        self._open()

    def _open(self) -> None:
        self.num_frames = self.num_missing = self._num_shown = 0
        self.trouble, self._colours, self._cuts = "", Colours(self._path), CutFinder()
        self._shape: tuple[int, ...] = ()
        self._size: tuple[int, int] = (0, 0)
        self._waiting: deque[weakref.ref[TimedFrame]] = deque()
        self._container = open_video(self._path) if self._given is None else self._given
        try:
            stream: Any = main_stream(self._path, self._container)
            set_threads(stream, self._num_threads)
            self._stream = stream
            self.time_base = Fraction(stream.time_base)
            self.rate: Fraction | None = stream.average_rate or stream.guessed_rate or stream.base_rate
            self._step = max(1, round(1 / (Fraction(self.rate or 25) * self.time_base)))
        except BaseException:
            self._container.close()
            raise
        start = self._container.start_time  # in microseconds; of all streams, sound too
        self._origin: int | None = None if start is None else round(Fraction(start, av.time_base) / self.time_base)
        self._last: int | None = None
        self._last_duration = self._step

    def __enter__(self) -> FileFrames:
        return self

    def __exit__(self, *_: object) -> None:
        # The thread that takes frames may be in FFmpeg still: for good, in some rotten files, which stay open.
        self._is_closed = True
        if self._decoding.acquire(timeout=_CLOSE_SEC):
            self._container.close()
            self._decoding.release()

    def start_over(self) -> None:
        """Lets frames be iterated over once more, from the first on."""
        with self._decoding:
            if not self._is_closed:
                self._container.close()
                self._open()

    @property
    def most_waiting(self) -> int:
        """How many frames wait at full size; when more are held, the oldest are made small."""
        codec = self._stream.codec_context
        return max(_WAITING_BYTES // max(3 * codec.width * codec.height, 1), 1)

    def foreseen_times(self) -> list[int] | None:
        """Times of all frames, and the end of the last, as its packets tell them; None where they don't.

        It reads the file once and decodes nothing. Damaged files may give other frames.
        """
        if self._given is not None or isinstance(self._path, RemoteVideo):  # not twice over a network
            return None
        try:
            with open_video(self._path) as container:
                packets = look_through_packets(self._path, container, main_stream(self._path, container))
        except (av.FFmpegError, ValueError):
            return None
        if packets.pts is None or packets.num_missing or packets.time_base != self.time_base:
            return None
        first = packets.times[0]
        origin = first if self._origin is None else min(self._origin, first)
        return [time - origin for time in packets.times]

    @property
    def duration_sec(self) -> float | None:
        """As the file states it; None where it does not."""
        if self._container.duration is not None:
            return float(self._container.duration / av.time_base)
        return None if self._stream.duration is None else float(self._stream.duration * self.time_base)

    @property
    def origin_sec(self) -> Fraction:
        """What the file calls the time 0; known when the first frame has come."""
        return (self._origin or 0) * self.time_base

    @property
    def cuts_sec(self) -> list[float]:
        """When the first frames after cuts are displayed, as far as frames have come."""
        return [float(cut * self.time_base) for cut in self._cuts.cuts]

    @property
    def end(self) -> int:
        """See `FrameSource`."""
        return (self._last or 0) + self._last_duration

    def __iter__(self) -> Iterator[TimedFrame]:
        frames = self._decoded()
        while True:
            with self._decoding, of_store(self._path):
                frame = None if self._is_closed else next(frames, None)
            if frame is None:
                break
            self.num_frames += 1
            yield self._timed(frame)
            del frame  # while it waits for the next one
        if not (self.num_frames or self._is_closed):
            reason = "no frame can be decoded" if self._num_shown else "it holds no frames"
            if self._given is not None and self.trouble:
                reason = f"{self.trouble} (does its server give ranges? Otherwise download it first)"
            raise VideoReadError(self._path, reason)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        stream, bits = self._stream, Bitstream(self._stream.codec_context.name, self._stream.codec_context.extradata)
        intact = empty = damaged = 0
        broken = ""
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.FFmpegError, ValueError) as error:  # as far as it can be read
                broken = one_line(error)
                break
            if packet.size == 0:
                empty += packet.dts is not None
                continue
            intact += not packet.is_corrupt and packet.dts is not None
            damaged += packet.is_corrupt
            if not (packet.is_corrupt or packet.is_discard or packet.size == 1):
                self._num_shown += bits.shows_frame(memoryview(packet))
            yield from decoded_frames(packet)[0]
        yield from drained_frames(stream)
        if broken and not self._ends_untold():
            self.trouble, damaged = broken, damaged + 1
        # An AVI's empty packets are counted as frames by its header.
        not_there = 0 if self._container.format.name == "avi" else stream.frames - empty - intact
        self.num_missing = max(self._num_shown - self.num_frames + max(not_there, damaged), 0)
        if self.num_missing and not self.trouble:
            self.trouble = f"only {self.num_frames} of its {self.num_frames + self.num_missing} frames can be read"

    def _ends_untold(self) -> bool:
        """Whether all has come of an answer over the net without a length, whose end is an error to FFmpeg."""
        if self._given is None or (self._container.size or 0) > 0 or self.duration_sec is None:
            return False
        return self.end * self.time_base > self.duration_sec - 1

    def _timed(self, frame: av.VideoFrame) -> TimedFrame:
        if self._origin is None or (self._last is None and frame.pts is not None and frame.pts < self._origin):
            self._origin = frame.pts or 0
        time = None if frame.pts is None else frame.pts - self._origin
        if self._last is None:
            time = time or 0
        elif time is None or time <= self._last:
            time = self._last + self._step
        self._last, self._last_duration = time, frame.duration or self._step
        self._cuts.add(time, brightness_grid(frame))
        timed = TimedFrame(time, lambda: self._small(frame))
        if not self._shape:
            _ = timed.image  # all others have its shape
        else:
            self._waiting.append(weakref.ref(timed))
            while len(self._waiting) > max(_WAITING_BYTES // math.prod(self._shape), 1):
                if (oldest := self._waiting.popleft()()) is not None:
                    oldest.make_small()
        return timed

    def _small(self, frame: av.VideoFrame) -> Tensor:
        image = np.ascontiguousarray(self._colours.rgb(frame, self._shape))  # (H,W,C)
        if not self._shape:
            self._shape = image.shape
            whole = (image.shape[0], image.shape[1])
            self._size = whole if self._short_side_px is None else short_side_size(*whole, self._short_side_px)
        return resized(torch.from_numpy(image), self._size)


class GivenFrames:
    """Frames from anywhere; see `FrameSource`. Each is made small when it comes, so that its memory is free again.

    Args:
        frames: RGB, uint8 (H, W, 3), a tensor or an array, and when each is displayed, in seconds; any iterable, which
            may wait for the next frame.
        short_side_px: that frames are resized to; all to the size of the first.
        name: for messages.
        rate: frames per second, if known.

    Raises:
        UserError: a frame is something else, or its time is not later than the one before. While they are iterated
            over.
    """

    def __init__(
        self,
        frames: Iterable[tuple[Tensor | np.ndarray, float]],
        short_side_px: int,
        *,
        name: str = "given frames",
        rate: float | None = None,
    ) -> None:
        self.name, self.time_base = name, _FINE
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"{name}: got rate {rate}, expected frames per second, or None")
        self.rate = None if rate is None else Fraction(rate).limit_denominator(1001)
        self._frames, self._short_side_px = frames, short_side_px
        self._last = self._duration = 0

    @property
    def end(self) -> int:
        """See `FrameSource`. The last frame stays as long as the one before it did."""
        stated = round(1 / (self.rate * self.time_base)) if self.rate else 0
        return self._last + (stated or self._duration or round(1 / (25 * self.time_base)))

    def __iter__(self) -> Iterator[TimedFrame]:
        size: tuple[int, int] | None = None
        for n, pair in enumerate(self._frames):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(f"{self.name}, frame {n}: got {type(pair).__name__}, expected (image, seconds)")
            image = rgb_image(pair[0], f"{self.name}, frame {n}")
            if image.ndim != 3:
                raise UserError(f"{self.name}, frame {n}: got shape {tuple(image.shape)}, expected (H, W, 3)")
            size = size or short_side_size(image.shape[0], image.shape[1], self._short_side_px)
            try:
                time_sec = float(pair[1])  # also of numpy and PyTorch
            except (TypeError, ValueError):
                time_sec = math.nan
            if not math.isfinite(time_sec):
                raise UserError(f"{self.name}, frame {n}: got time {pair[1]}, expected seconds")
            time = round(Fraction(time_sec) / self.time_base)
            if n and time <= self._last:
                before = float(self._last * self.time_base)
                raise UserError(f"{self.name}, frame {n}: got time {time_sec} s, expected more than {before:.6g} s")
            self._last, self._duration = time, time - self._last if n else 0
            small = resized(image, size)
            if small.data_ptr() == image.data_ptr():  # it may be written over by whoever gave it
                small = small.clone()
            yield TimedFrame(time, lambda small=small: small)  # type: ignore[misc]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame, uint8 (H, W, C) to (h, w, C)."""
    return resize(image[None], size).permute(0, 2, 3, 1)[0]
