"""What a file says without being decoded: how many frames it shows and when, and which readers would get them right.

decord numbers keyframes in the order of decoding and frames in the order of display, and jumps to a keyframe
wherever one lies between two wanted frames. Both orders agree only where no frame refers across a keyframe
(closed groups of pictures). Elsewhere it gives other frames than those asked for, and no error: HEVC as x265
writes it, MPEG-4 with B-frames as in HMDB51. In this stream a jump to I4 loses B2 and B3, which need P1::

    decoded    I0 P1 I4 B2 B3 P5
    displayed  I0 P1 B2 B3 I4 P5
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from octvideo.video.av1 import Av1References
from octvideo.video.bitstream import Bitstream
from octvideo.video.frames import Source, for_ffmpeg

# What decord 0.6 decodes as PyAV does; it has no AV1, gives garbage for more than 8 bits, and seeks wrongly in AVI.
_CODECS = frozenset({"h264", "hevc", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg"})
_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_CONTAINERS = ("mp4", "matroska")
# Containers that store when frames are displayed; AVI stores when they are decoded.
_DISPLAY_TIMES = (*_CONTAINERS, "flv", "mpegts")
# Packets up to this size are kept for the decoder, so that a file is opened and read once: clips of some minutes.
_HELD_BYTES = 32 * 2**20
_AVI_ENTRY = np.dtype([("stream", "S2"), ("kind", "S2"), ("flags", "<u4"), ("place", "<u4"), ("size", "<u4")])


@dataclass(frozen=True)
class Packets:
    """What the packets of a video stream say.

    Args:
        num_frames: that they show, if all of them can be decoded.
        num_missing: frames that the header announces and no intact packet brings: the file is cut off. An AVI's empty
            packets announce none.
        trouble: why decord would fail or may give other frames; None where nothing speaks against it.
        times: when each frame is displayed, in the order of display, in units of `time_base`; `num_frames`, and the
            last one's end. Files without usable timestamps have the constant rate that their header states.
        time_base: in seconds.
        pts: display time of each packet in the order of decoding, None for one that shows no frame. None where
            frames can't be told by their times: then they must be counted from the start.
        starts: places in `pts` of keyframes from which on everything that is displayed later can be decoded.
        seek_trouble: why a reader that seeks to keyframes by time may give other frames.
        held: the packets, in the order of decoding, where they are few.
        references: of AV1, which frames each one refers to.
    """

    num_frames: int
    num_missing: int
    trouble: str | None
    times: list[int]
    time_base: Fraction
    pts: list[int | None] | None
    starts: list[int]
    seek_trouble: str | None
    held: list[Any] | None
    references: Av1References | None


def look_through_packets(path: Source, container: Any, stream: Any) -> Packets:
    """Reads all packets of a stream: some milliseconds for a clip of ten seconds.

    Args:
        path: of the video; or its content.
        container: opened by PyAV; it is at its end afterwards.
        stream: of video, in `container`.

    Raises:
        av.FFmpegError, ValueError: there is no packet that can be read.
    """
    seen = _Seen(stream)
    try:
        for packet in container.demux(stream):
            seen.add(packet)
    except (av.FFmpegError, ValueError):
        if not seen.shown:
            raise
        seen.damaged += 1
    num_empty = seen.empty
    if stream.frames - num_empty > seen.intact and container.format.name == "avi":
        num_empty = max(num_empty, _empty_in_avi(path, stream.index))
    num_missing = max(stream.frames - num_empty - seen.intact, seen.damaged)
    missing = ["missing packets"] if num_missing else []
    known = [time for time in seen.shown if time is not None]
    are_told_by_times = len(set(known)) == len(seen.shown)
    own_times = [] if are_told_by_times else ["frames without a time of their own"]
    troubles = _stream_troubles(container, stream) + seen.troubles + missing + own_times
    if not troubles and not _closed_groups(known, seen.keys_shown):
        troubles.append("frames that refer across keyframes")
    own_times += [] if _are_display_times(container, stream, known) else ["times that are not those of display"]
    countable = not own_times and not seen.changes_settings
    times, time_base = _display_times(stream, known if are_told_by_times else [], len(seen.shown), seen.last_duration)
    starts = _starts(seen.pts, seen.starts) if countable else []
    seek_troubles = _pixel_troubles(stream.codec_context) + missing + own_times + seen.troubles
    if not seek_troubles and len(starts) < len(seen.keys_shown):
        seek_troubles.append("keyframes that are none, or unknown ones")
    return Packets(
        num_frames=len(seen.shown),
        num_missing=num_missing,
        trouble=troubles[0] if troubles else None,
        times=times,
        time_base=time_base,
        pts=seen.pts if countable else None,
        starts=starts,
        seek_trouble=seek_troubles[0] if seek_troubles else None,
        held=seen.held,
        references=seen.references,
    )


class _Seen:
    """Packets one after the other."""

    def __init__(self, stream: Any) -> None:
        codec = stream.codec_context
        self._bits = Bitstream(codec.name, codec.extradata)
        self._num_bytes = 0
        self.held: list[Any] | None = []
        self.references = Av1References() if self._bits.codec == "av1" else None
        self.pts: list[int | None] = []  # of all packets
        self.shown: list[int | None] = []  # of those that show a frame
        self.keys_shown: list[int] = []  # places of keyframes in `shown`
        self.starts: list[int] = []  # places of real ones in `pts`
        self.intact = self.damaged = self.empty = 0
        self.last_duration: tuple[int, int] = (0, 0)  # latest time, and how long that frame stays
        self.troubles: list[str] = []
        self.changes_settings = False

    def add(self, packet: Any) -> None:
        if packet.size == 0:  # the end, which has no time; a frame before it once more, in an AVI
            self.empty += packet.dts is not None
            return
        self.intact += not packet.is_corrupt and packet.dts is not None
        self._hold(packet)
        self.pts.append(None)
        content = memoryview(packet)
        if self.references is not None:
            self.references.add([] if packet.is_corrupt else content)
        if packet.is_corrupt:
            self.damaged += 1
            return
        # Not what an edit list cuts off, AVI's placeholders, and frames that are only referred to.
        if packet.is_discard or packet.size == 1 or not self._bits.shows_frame(content):
            self.troubles.append("packets that show no frame")
            return
        if packet.is_keyframe:
            self.keys_shown.append(len(self.shown))
            if self._bits.is_start(content):
                self.starts.append(len(self.pts) - 1)
            elif self._bits.codec == "h264":
                self.troubles.append("keyframes that refer to earlier frames")
        if any(True for _ in packet.iter_sidedata()):  # this takes PyAV 1 us, to ask for a kind 4 to 5
            if packet.has_sidedata("encryption_info"):
                self.troubles.append("encrypted packets")
            self.changes_settings |= packet.has_sidedata("new_extradata") and len(self.shown) > 0
        self.pts[-1] = packet.pts
        self.shown.append(packet.pts)
        if packet.pts is not None:
            self.last_duration = max(self.last_duration, (packet.pts, packet.duration or 0))

    def _hold(self, packet: Any) -> None:
        self._num_bytes += packet.size
        if self._num_bytes > _HELD_BYTES:
            self.held = None
            if self.references is not None:
                self.references.keep_no_packets()
        elif self.held is not None:
            self.held.append(packet)


def _empty_in_avi(path: Source, stream: int) -> int:
    """Packets without content, of which most decoders are told nothing: they stand for the frame before them once more.

    By the index at the end of the file, which one that is cut off has not.
    """
    source = for_ffmpeg(path)
    with Path(source).open("rb") if isinstance(source, str) else source as file:
        file.seek(12)
        while len(header := file.read(8)) == 8:
            size = int.from_bytes(header[4:], "little")
            if header[:4] == b"idx1":
                content = file.read(size)
                entries = np.frombuffer(content[: len(content) // 16 * 16], _AVI_ENTRY)
                is_video = (entries["stream"] == b"%02d" % stream) & np.isin(entries["kind"], (b"dc", b"db"))
                return int((is_video & (entries["size"] == 0)).sum())
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def _stream_troubles(container: Any, stream: Any) -> list[str]:
    codec, name = stream.codec_context, container.format.name
    if codec.name not in _CODECS:
        return [f"codec {codec.name}"]
    if not any(known in name for known in _CONTAINERS):
        return [*_pixel_troubles(codec), f"container {name}"]
    return _pixel_troubles(codec)


def _pixel_troubles(codec: Any) -> list[str]:
    """Frames that readers convert to RGB differently."""
    pixels = codec.format and codec.format.name  # not codec.pix_fmt: where none is known, PyAV 17 crashes
    if pixels not in _PIXELS:
        return [f"pixel format {pixels}"]
    if codec.width % 2 or codec.height % 2:
        return ["odd frame size"]  # decord and torchcodec differ from PyAV in the colours of neighbouring pixels
    return []


def _are_display_times(container: Any, stream: Any, pts: list[int]) -> bool:
    """Whether frames are displayed in the order of their times, as far as can be told without decoding."""
    is_reordered = any(a > b for a, b in pairwise(pts))
    stores_them = any(known in container.format.name for known in _DISPLAY_TIMES)
    return stores_them and (is_reordered or not stream.codec_context.has_b_frames)


def _closed_groups(pts: list[int], keys: list[int]) -> bool:
    """Whether each keyframe parts the stream: displayed after all packets before it and before all packets after it."""
    latest = list(accumulate(pts, max))
    earliest = list(accumulate(reversed(pts), min))[::-1]
    return all(latest[key - 1] < pts[key] == earliest[key] for key in keys if key > 0)


def _starts(pts: list[int | None], keys: list[int]) -> list[int]:
    """The keyframes that are displayed after everything before them; the first packet is one of them in any case."""
    latest = list(accumulate((-(2**63) if time is None else time for time in pts), max))
    return [0] + [key for key in keys if key > 0 and latest[key - 1] < (pts[key] or 0)]


def _display_times(stream: Any, known: list[int], num_frames: int, last: tuple[int, int]) -> tuple[list[int], Fraction]:
    """Times of all frames and the end of the last, and their unit."""
    if known:
        times = sorted(known)
        end = times[-1] + (last[1] or (times[-1] - times[0]) // max(len(times) - 1, 1) or 1)
        return [*times, end], Fraction(stream.time_base)
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate or 25
    return list(range(num_frames + 1)), 1 / Fraction(rate)
