"""What a file says without being decoded: how many frames it shows, and whether decord would get them right.

decord numbers keyframes in the order of decoding and frames in the order of display, and jumps to a keyframe
wherever one lies between two wanted frames. Both orders agree only where no frame refers across a keyframe
(closed groups of pictures). Elsewhere it gives other frames than those asked for, and no error: HEVC as x265
writes it, MPEG-4 with B-frames as in HMDB51. In this stream a jump to I4 loses B2 and B3, which need P1::

    decoded    I0 P1 I4 B2 B3 P5
    displayed  I0 P1 B2 B3 I4 P5
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import av

# What decord 0.6 decodes as PyAV does; it has no AV1, gives garbage for more than 8 bits, and seeks wrongly in AVI.
_CODECS = frozenset({"h264", "hevc", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg"})
_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_CONTAINERS = ("mp4", "matroska")


@dataclass(frozen=True)
class Packets:
    """What the packets of a video stream say.

    Args:
        num_frames: that they show, if all of them can be decoded.
        num_missing: frames that the header announces and no intact packet brings: the file is cut off.
        trouble: why decord would fail or may give other frames; None where nothing speaks against it.
    """

    num_frames: int
    num_missing: int
    trouble: str | None


def look_through_packets(container: Any, stream: Any) -> Packets:
    """Reads all packets of a stream: some milliseconds for a clip of ten seconds.

    Args:
        container: opened by PyAV; it is at its end afterwards.
        stream: of video, in `container`.

    Raises:
        av.FFmpegError, ValueError: there is no packet that can be read.
    """
    codec = stream.codec_context
    pts: list[int | None] = []  # of packets that show a frame, in the order of decoding
    keys: list[int] = []  # places of keyframes in `pts`
    intact = damaged = 0
    troubles = _stream_troubles(container, stream)
    try:
        for packet in container.demux(stream):
            intact += not packet.is_corrupt and packet.dts is not None  # None: the end
            if packet.size == 0:  # the end; a dropped frame of an AVI
                continue
            if packet.is_corrupt:
                damaged += 1
            elif not _shows_frame(packet, codec.name):
                troubles.append("packets that show no frame")
            else:
                if packet.is_keyframe:
                    keys.append(len(pts))
                    if codec.name == "h264" and not _has_idr(bytes(packet), codec.extradata):
                        troubles.append("keyframes that refer to earlier frames")
                pts.append(packet.pts)
    except (av.FFmpegError, ValueError):
        if not pts:
            raise
        damaged += 1
    num_missing = max(stream.frames - intact, damaged)
    if num_missing:
        troubles.append("missing packets")
    known = [time for time in pts if time is not None]
    if len(set(known)) < len(pts):
        troubles.append("frames without a time of their own")
    elif not _closed_groups(known, keys):
        troubles.append("frames that refer across keyframes")
    return Packets(len(pts), num_missing, troubles[0] if troubles else None)


def _stream_troubles(container: Any, stream: Any) -> list[str]:
    codec, name = stream.codec_context, container.format.name
    if codec.name not in _CODECS:
        return [f"codec {codec.name}"]
    if codec.pix_fmt not in _PIXELS:
        return [f"pixel format {codec.pix_fmt}"]
    if not any(known in name for known in _CONTAINERS):
        return [f"container {name}"]
    if codec.width % 2 or codec.height % 2:
        return ["odd frame size"]  # FFmpeg 4.1 and later ones differ in the colours of neighbouring pixels
    return []


def _closed_groups(pts: list[int], keys: list[int]) -> bool:
    """Whether each keyframe parts the stream: displayed after all packets before it, before all behind it."""
    latest = list(accumulate(pts, max))
    earliest = list(accumulate(reversed(pts), min))[::-1]
    return all(latest[key - 1] < pts[key] == earliest[key] for key in keys if key > 0)


def _shows_frame(packet: Any, codec: str) -> bool:
    """Not what an edit list cuts off, AVI's placeholders, and the frames of VP8 and VP9 that are only referred to."""
    if packet.is_discard or packet.size == 1:
        return False
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0b0001_0000)  # show_frame, RFC 6386 section 9.1
    if codec == "vp9":
        head, tail = memoryview(packet)[0], memoryview(packet)[-1]
        # Bits of the first byte (VP9 specification 6.2): marker 10, two of the profile, a reserved one in profile 3
        # only, show_existing_frame, frame_type, show_frame. A superframe (annex B) ends with 110xxxxx and shows one.
        superframe, profile_3 = tail >> 5 == 0b110, head >> 4 & 0b11 == 0b11
        return superframe or profile_3 or bool(head & 0b1000) or bool(head & 0b0010)
    return True


def _has_idr(packet: bytes, extradata: bytes | None) -> bool:
    """Whether an H.264 keyframe forgets all before it (IDR, NAL unit type 5); others only begin a recovery."""
    if not extradata or extradata[0] != 1 or len(extradata) < 5:
        return b"\x00\x00\x01\x65" in packet or b"\x00\x00\x01\x25" in packet  # start codes in place of lengths
    width, place = (extradata[4] & 3) + 1, 0
    while place + width < len(packet):
        if packet[place + width] & 0b11111 == 5:
            return True
        place += width + int.from_bytes(packet[place : place + width], "big")
    return False
