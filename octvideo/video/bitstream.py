"""What the first bits of a packet say about its frame: where decoding can start, and what nothing refers to.

Only what the standards promise counts as a yes; every doubt is a no, which costs time and never a frame.
"""

from __future__ import annotations

from collections.abc import Iterator

from octvideo.video.av1 import Av1Headers

# The names of decoders, for those that differ from their codec's.
_CODECS = {"libdav1d": "av1", "libaom-av1": "av1", "av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}


class Bitstream:
    """Packets of one stream.

    Args:
        decoder: FFmpeg's name of it.
        extradata: of the stream, as the container holds it.
    """

    def __init__(self, decoder: str, extradata: bytes | None) -> None:
        self.codec = _CODECS.get(decoder, decoder)
        self._length_bytes = _nal_length_bytes(self.codec, extradata or b"")
        # hvcC's numTemporalLayers: frames that are not referred to in their own layer may be in a higher one.
        self._is_one_layer = self._length_bytes > 0 and self.codec == "hevc" and extradata[21] >> 3 & 7 == 1  # type: ignore[index]
        self.av1_frames = Av1Headers(extradata if self.codec == "av1" else None).frames

    def shows_frame(self, packet: memoryview) -> bool:
        """False for the frames of VP8 and VP9 that others only refer to."""
        if self.codec == "vp8":
            return bool(packet[0] & 0b0001_0000)  # show_frame, RFC 6386 section 9.1
        if self.codec == "vp9":
            head, tail = packet[0], packet[-1]
            # Bits of the first byte (VP9 specification 6.2): marker 10, two of the profile, a reserved one in profile
            # 3 only, show_existing_frame, frame_type, show_frame. A superframe (annex B) ends with 110xxxxx and shows
            # one frame.
            superframe, profile_3 = tail >> 5 == 0b110, head >> 4 & 0b11 == 0b11
            return superframe or profile_3 or bool(head & 0b1000) or bool(head & 0b0010)
        return True

    def is_start(self, packet: memoryview) -> bool:
        """Whether a packet marked as a keyframe is one: nothing decoded from it on needs what lies before it.

        (But frames that are displayed before it and follow it in the stream may: see `packets.Packets.starts`.)
        """
        if self.codec == "h264":  # other "keyframes" only begin a recovery
            return any(unit[0] & 0b11111 == 5 for unit in self._units(packet))
        if self.codec == "hevc":  # BLA, IDR, CRA
            return any(16 <= unit[0] >> 1 & 0b111111 <= 21 for unit in self._units(packet))
        if self.codec == "mpeg4":
            return _mpeg4_kinds(packet)[:1] == [0]
        if self.codec == "vp8":
            return not packet[0] & 1
        if self.codec == "vp9":  # a superframe begins with its first frame
            return packet[0] >> 4 == 0b1000 and not packet[0] & 0b1100
        if self.codec == "av1":
            frames = self.av1_frames(packet)
            return bool(frames) and frames[0].is_key
        return self.codec == "mjpeg" and _has_own_tables(packet)

    def is_droppable(self, packet: memoryview) -> bool:
        """Whether no other frame needs this one: as FFmpeg's `skip_frame noref`, for every decoder."""
        if self.codec == "h264":  # nal_ref_idc of all slices
            slices = [unit[0] for unit in self._units(packet) if 1 <= unit[0] & 0b11111 <= 5]
            return bool(slices) and not any(head & 0b0110_0000 for head in slices)
        if self.codec == "hevc":
            kinds = [unit[0] >> 1 & 0b111111 for unit in self._units(packet)]
            slices = [kind for kind in kinds if kind < 32]
            return self._is_one_layer and bool(slices) and set(slices) <= {0, 6, 8}  # TRAIL_N, RADL_N, RASL_N
        if self.codec == "mpeg4":  # a B-frame; some AVI pack two frames into a packet
            return _mpeg4_kinds(packet) == [2]
        if self.codec == "av1":
            frames = self.av1_frames(packet)
            return bool(frames) and all(frame.refreshes == 0 for frame in frames)
        return self.codec == "mjpeg" and _has_own_tables(packet)

    def has_settings(self, packet: memoryview) -> bool:
        """Whether it holds parameter sets, which the packets after it need."""
        if self.codec == "h264":
            return any(unit[0] & 0b11111 in (7, 8) for unit in self._units(packet))
        if self.codec == "hevc":
            return any(32 <= unit[0] >> 1 & 0b111111 <= 34 for unit in self._units(packet))
        return False

    def _units(self, packet: memoryview) -> Iterator[memoryview]:
        """The NAL units of H.264 and HEVC, two bytes or more each."""
        place, end = 0, len(packet)
        if not self._length_bytes:
            yield from _units_by_start_code(packet)
            return
        while place + self._length_bytes + 2 <= end:
            size = int.from_bytes(packet[place : place + self._length_bytes], "big")
            place += self._length_bytes
            yield packet[place : place + size] if size > 1 else packet[place : place + 2]
            place += size


def _nal_length_bytes(codec: str, extradata: bytes) -> int:
    """How many bytes tell the length of a NAL unit; 0 where start codes part them."""
    place = {"h264": 4, "hevc": 21}.get(codec, 0)
    return (extradata[place] & 3) + 1 if place and len(extradata) > place and extradata[0] == 1 else 0


def _units_by_start_code(packet: memoryview) -> Iterator[memoryview]:
    data = bytes(packet)
    place = data.find(b"\x00\x00\x01")
    while 0 <= place < len(data) - 4:
        following = data.find(b"\x00\x00\x01", place + 3)
        yield packet[place + 3 : following if following > place + 5 else None]
        place = following


def _mpeg4_kinds(packet: memoryview) -> list[int]:
    """vop_coding_type of each frame in a packet: 0 I, 1 P, 2 B, 3 sprite."""
    data, kinds = bytes(packet), []
    place = data.find(b"\x00\x00\x01\xb6")
    while 0 <= place < len(data) - 4:
        kinds.append(data[place + 4] >> 6)
        place = data.find(b"\x00\x00\x01\xb6", place + 4)
    return kinds


def _has_own_tables(packet: memoryview) -> bool:
    """Whether a JPEG brings its quantisation and Huffman tables."""
    head = bytes(packet[:2048])
    return b"\xff\xdb" in head and b"\xff\xc4" in head
