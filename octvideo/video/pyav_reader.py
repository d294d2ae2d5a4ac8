"""Frames with PyAV: the reader that takes every file, and the one that the others are held against.

Where packets tell which frame each of them shows, only the packets that a wanted frame needs are decoded: from the
keyframe before it on, without the frames in between that nothing refers to. AV1's headers tell what each frame refers
to: only frames that the wanted one refers to, itself or by others, are decoded. Elsewhere, and where a frame does not
come as foreseen, all are decoded from the start and counted. Both ways give the same frames (of 320 damaged files, one
gave other pixels and three another count).

Damage is the dear case: a packet of 30 bytes makes a frame of 4K, so counting frames can take half a minute. AV1's
decoder leaves out what it can't decode and starts anew at each keyframe. So only groups of pictures that hold wanted
frames are decoded, up to the damage; frames that are lost are taken off, and the choice is made again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from octvideo.video.av1 import part_of_unit
from octvideo.video.bitstream import Bitstream
from octvideo.video.frames import FrameCollector, ReaderFailure, Resize, Source, VideoReadError
from octvideo.video.packets import Packets, look_through_packets
from octvideo.video.pyav_file import Colours, decoded_frames, drained_frames, fail, main_stream, open_video, set_threads

# Decoders that conceal nothing: neither a damaged frame nor one that needs it comes, and a keyframe starts anew.
_CONCEAL_NOTHING = frozenset({"av1"})
# Frames from this size on are resized one by one: gathering copies of 4K costs more than it saves. Smaller frames are
# faster gathered.
_LONE_BYTES = 16 * 2**20
# How often damaged groups of pictures are looked for where wanted frames lie, before all frames are counted.
_MAX_LOOKS = 3


class FewerFramesError(Exception):
    """A file gave fewer frames than it announced.

    Args:
        came: times of the frames that came, or may come, None where one has none.
    """

    def __init__(self, came: Sequence[int | None]) -> None:
        super().__init__(len(came))
        known = [time for time in came if time is not None]
        is_ordered = len(known) == len(came) and all(a < b for a, b in pairwise(known))
        self.num_frames, self.times = len(came), known if is_ordered else None


class PyavVideo:
    """A file that is open, with what its packets say. To be closed, by `with`.

    Args:
        path: of the video; or its content.
        num_threads: of the decoder.

    Raises:
        VideoReadError: it can't be opened, or holds no video.
    """

    def __init__(self, path: Source, num_threads: int) -> None:
        self.path, self.num_threads = path, num_threads
        self._colours, self._has_decoded = Colours(path), False
        self._container = open_video(path)
        try:
            self._stream = main_stream(path, self._container)
            set_threads(self._stream, num_threads)
            self.index = self._stream.index
            self.frame_bytes = max(3 * self._stream.codec_context.width * self._stream.codec_context.height, 1)
            self.packets: Packets = look_through_packets(path, self._container, self._stream)
            # Of the frames that wanted numbers count, where frames can be told by their times.
            self._times: list[int] | None = self.packets.times[:-1]
            self._num_looks = 0
        except BaseException as error:
            self._container.close()
            if isinstance(error, (av.FFmpegError, ValueError)) and not isinstance(error, VideoReadError):
                fail(path, error)
            raise

    def __enter__(self) -> PyavVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def read(self, wanted: list[int], resize: Resize | None) -> Tensor:
        """The wanted frames, (D, H, W, C) or as `resize` makes them.

        Args:
            wanted: frame indices, sorted, each once. Of the frames that came, where there were fewer the time before.
            resize: see `read_frames`.

        Raises:
            FewerFramesError: there are fewer frames.
            VideoReadError: a frame can't be converted.
        """
        try:
            if self.packets.pts is not None and self._times is not None:
                try:
                    return self._collect(self._planned(wanted, self._times, self.packets.pts), len(wanted), resize)
                except ReaderFailure:
                    pass
            return self._collect(self._counted(wanted), len(wanted), resize)
        except FewerFramesError as fewer:
            # FFmpeg guesses some times, as those of second fields.
            is_of_packets = fewer.times is not None and set(fewer.times) <= set(self.packets.pts or ())
            self._times = fewer.times if is_of_packets else None
            raise

    # ── which frames ────────────────────────────────────────────────────────────────────────────────────────

    def _planned(self, wanted: list[int], times: list[int], pts: list[int | None]) -> Iterator[av.VideoFrame]:
        """The wanted frames, known by their times, with as little decoding as is safe.

        Raises:
            FewerFramesError: damage leaves some out. Frames far from those that were wanted may be missing too.
            ReaderFailure: one did not come as foreseen.
        """
        runs = _runs([times[frame] for frame in wanted], pts, self.packets.starts)
        run, is_open, has_skipped_settings = next(runs), False, False
        references = self.packets.references
        coded = references.needed(run.places, run.start) if references else None
        group, lost, is_missing = _Group(run), set[int](), False
        for place, (packet, stream) in enumerate(self._all_packets()):
            content = memoryview(packet)
            if place == 0:
                bits = Bitstream(stream.codec_context.name, stream.codec_context.extradata)
                conceals_nothing = bits.codec in _CONCEAL_NOTHING
                may_lose = conceals_nothing and self._num_looks < _MAX_LOOKS
            if place < run.start:
                has_skipped_settings |= bits.has_settings(content)
                continue
            if place == run.start:
                if has_skipped_settings and not bits.has_settings(content):
                    raise ReaderFailure("settings in between")
                if is_open:
                    stream.codec_context.flush_buffers()
                is_open = True
            if group.is_damaged:
                part, is_shown = packet, True
            elif coded is None:
                part, is_shown = packet if place in run.places or not bits.is_droppable(content) else None, True
            else:
                part, is_shown = _part(packet, coded.get(place, frozenset()))
            if part is not None:
                frames, is_intact = decoded_frames(part)
                if not (is_intact or conceals_nothing):  # others show what they showed before
                    raise ReaderFailure("a damaged packet")
                came = group.those_due(frames, pts[place] if is_shown else None, is_intact, may_lose)
                yield from () if is_missing else came
            # Behind damage, to the end of the group: what else is lost need not be found out frame by frame.
            if place == run.last or (place >= run.end and (group.is_done or not group.is_damaged)):
                came = group.those_due(drained_frames(stream), None, True, may_lose)
                yield from () if is_missing else came
                if not group.is_done:
                    if not may_lose:
                        break
                    is_missing = True
                lost |= group.lost()
                following = next(runs, None)
                if following is None:
                    break
                run, group = following, _Group(following)
                coded = references.needed(run.places, run.start) if references else None
        if group.is_done and not is_missing:
            return
        left = [time for time in times if time not in lost]
        if is_missing and len(left) < len(times):
            self._num_looks += 1
            raise FewerFramesError(left)
        raise ReaderFailure("a frame did not come")

    def _counted(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """The wanted frames, counted from the start; packets that can't be decoded give none.

        Raises:
            FewerFramesError: the file ends before the last of them.
        """
        times: list[int | None] = []
        found = 0
        for frame in self._all_frames():
            if len(times) == wanted[found]:
                yield frame
                found += 1
                if found == len(wanted):
                    return
            times.append(frame.pts)
        raise FewerFramesError(times)

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        stream = self._stream
        for packet, stream in self._all_packets():  # noqa: B007 (of the file as it is opened now)
            yield from decoded_frames(packet)[0]
        yield from drained_frames(stream)

    def _all_packets(self) -> Iterator[tuple[Any, Any]]:
        """All packets with content, as they were looked through, and their stream, whose decoder is a fresh one."""
        if self.packets.held is not None and not self._has_decoded:
            self._has_decoded = True
            for packet in self.packets.held:
                yield packet, self._stream
            return
        self._container.close()
        self._container = open_video(self.path)
        self._stream = main_stream(self.path, self._container)
        set_threads(self._stream, self.num_threads)
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError, ValueError):
                return
            if packet.size:
                yield packet, self._stream

    # ── their pixels ────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self, frames: Iterable[av.VideoFrame], num_frames: int, resize: Resize | None) -> Tensor:
        collector = FrameCollector(num_frames, resize)
        chunk, filled = np.empty(0, np.uint8), 0  # (n,H,W,C)
        shape: tuple[int, ...] = ()
        for frame in frames:
            image = self._colours.rgb(frame, shape)  # (H,W,C)
            shape = image.shape
            if resize is not None and image.nbytes >= _LONE_BYTES and min(image.strides) > 0:
                collector.add(torch.from_numpy(image[None]))  # without a copy
                del image  # the next frame gets its memory
                continue
            if len(chunk) == 0:
                chunk = np.empty((collector.chunk_frames(image.nbytes), *image.shape), np.uint8)
            chunk[filled] = image
            filled += 1
            if filled == len(chunk) or collector.done + filled == num_frames:
                collector.add(torch.from_numpy(chunk[:filled]))
                filled = 0
        return collector.frames()


@dataclass(frozen=True)
class _Run:
    """Packets [start, end] that are decoded in one go, those at `places` for their frames, shown at `times`.

    The packets up to `last` belong to the same group of pictures.
    """

    start: int
    end: int
    last: int
    places: set[int]
    times: list[int]


def _runs(wanted: list[int], pts: list[int | None], starts: list[int]) -> Iterator[_Run]:
    place_of = {time: place for place, time in enumerate(pts) if time is not None}
    run: _Run | None = None
    for time in wanted:
        place = place_of[time]
        number = bisect_right(starts, place) - 1
        last = (starts[number + 1] if number + 1 < len(starts) else len(pts)) - 1
        if number > 0 and (pts[starts[number]] or 0) > time:
            number -= 1  # it is displayed before this keyframe, and may need what lies before it
        start = starts[number]
        if run is not None and start <= run.end:
            end, last = max(run.end, place), max(run.last, last)
            run = _Run(run.start, end, last, run.places | {place}, [*run.times, time])
            continue
        if run is not None:
            yield run
        run = _Run(start, place, last, {place}, [time])
    if run is not None:
        yield run


class _Group:
    """What comes of a run."""

    def __init__(self, run: _Run) -> None:
        self.is_damaged = self._is_missing_some = False
        self._due, self._foreseen, self._came = deque(run.times), set[int](), set[int]()

    @property
    def is_done(self) -> bool:
        """Whether all frames that were waited for have come."""
        return not self._due and not self._is_missing_some

    def those_due(
        self, frames: list[av.VideoFrame], time: int | None, is_intact: bool, may_lose: bool
    ) -> list[av.VideoFrame]:
        """The frames that are waited for; they must come in the order of their times.

        Args:
            frames: that came out of the decoder.
            time: of the frame that went into it, if any.
            is_intact: whether that was undamaged.
            may_lose: whether frames may be missing where no damage was told.

        Raises:
            ReaderFailure: they do not, without damage.
        """
        self.is_damaged |= not is_intact
        if time is not None:
            self._foreseen.add(time)
        due = []
        for frame in frames:
            is_missing = frame.pts is None or (self._due and frame.pts > self._due[0] and not self.is_damaged)
            if frame.pts is None or (is_missing and not may_lose):
                raise ReaderFailure("a frame did not come in its turn")
            self._came.add(frame.pts)
            while self._due and frame.pts > self._due[0]:
                self._due.popleft()
                self.is_damaged = self._is_missing_some = True
            if self._due and frame.pts == self._due[0]:
                self._due.popleft()
                due.append(frame)
        return due

    def lost(self) -> set[int]:
        """Times of frames that were decoded and did not come."""
        return self._foreseen - self._came


def _part(packet: Any, numbers: Set[int]) -> tuple[Any, bool]:
    """Some frames of an AV1 packet, as a packet, None if there are none; and whether the one it shows is among them."""
    if not numbers:
        return None, False
    content = part_of_unit(memoryview(packet), numbers)
    if len(content) == packet.size:
        return packet, True
    part = av.Packet(content)
    part.stream, part.time_base, part.pts, part.dts = packet.stream, packet.time_base, packet.pts, packet.dts
    return part, -1 in numbers
