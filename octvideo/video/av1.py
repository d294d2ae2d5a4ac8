"""AV1: which coded frames another one needs, from what their headers say, and packets of those alone.

An encoder lays frames out in a pyramid, so that few of them need most of those before them; a packet holds the frame
that it shows, and in front of it those that are shown later. All that a frame takes over from others, pictures, motion
and probabilities, it takes from those that its header names (specification of 2019, sections 5.9.2 and 7.20). VP9
hands probabilities on from frame to frame: there none can be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

_ALL_SLOTS = 0xFF
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # kinds of OBU


class Av1Frame(NamedTuple):
    """What a frame's header says.

    Args:
        is_shown: whether its packet shows it.
        is_key: whether everything starts anew with it.
        refreshes: bits of the eight reference slots that it goes to; all, where that is not known.
        refers: bits of the slots that it may need.
        is_repeat: whether it only shows what is in a slot.
    """

    is_shown: bool
    is_key: bool
    refreshes: int
    refers: int
    is_repeat: bool = False


class Av1Headers:
    """Frame headers of one stream.

    Args:
        extradata: of the stream, as the container holds it.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sequence = _sequence(extradata[4:]) if extradata else None

    def frames(self, packet: memoryview) -> list[Av1Frame]:
        """All frames of a temporal unit; none where there is one that this does not understand."""
        frames = []
        try:
            for kind, _, payload in _units(packet):
                if kind == _SEQUENCE_HEADER:
                    self._sequence = _sequence_header(payload)
                elif kind in (_FRAME_HEADER, _FRAME):
                    if self._sequence is None:
                        return []
                    frames.append(_frame(payload, self._sequence))
        except (IndexError, ValueError):
            return []
        return frames


# A coded frame: the place of its packet, and its number in it, counted from the last, -1, which is the one shown.
Coded = tuple[int, int]


class Av1References:
    """Which frames each one refers to, of all packets of a stream in the order of decoding.

    Headers are read when they are asked about, of kept packets: those of 20,000 take half a second.
    """

    def __init__(self) -> None:
        self._headers = Av1Headers(None)
        self._keeps = True
        self._packets: list[memoryview | list[Av1Frame]] = []

    def add(self, packet: memoryview | list[Av1Frame]) -> None:
        """The next packet; or its frames, none where it is damaged: then nothing is known up to a keyframe."""
        self._packets.append(packet if self._keeps or isinstance(packet, list) else self._headers.frames(packet))

    def keep_no_packets(self) -> None:
        """From now on headers are read at once, those of all packets so far now."""
        if self._keeps:
            self._keeps, packets, self._packets = False, self._packets, []
            for packet in packets:
                self.add(packet)

    def needed(self, places: Set[int], start: int) -> dict[int, set[int]] | None:
        """What must be decoded for the frames that some packets show.

        Args:
            places: of those packets.
            start: place of the keyframe that decoding begins with; the first packet that shows one of them or before.

        Returns:
            numbers of frames, counted from the last of each packet, -1, by the places of the packets; None where that
            is not known.
        """
        refers = self._referred_to(start, max(places))
        needed = dict[int, set[int]]()
        left: list[Coded] = [(place, -1) for place in places]
        while left:
            place, number = left.pop()
            numbers, named = needed.setdefault(place, set()), refers[place - start]
            if named is None:
                return None
            if number not in numbers:
                numbers.add(number)
                left += named[number]
        return needed

    def _referred_to(self, start: int, last: int) -> list[list[set[Coded]] | None]:
        """Of each packet in [start, last] what its frames refer to; None where that is not known."""
        headers = Av1Headers(None)  # a keyframe's packet brings the sequence header along
        slots: list[Coded] | None = None  # what each holds
        key: Coded = (start, -1)
        all_refers: list[list[set[Coded]] | None] = []
        for place in range(start, last + 1):
            packet, refers = self._packets[place], list[set[Coded]]()
            frames = packet if isinstance(packet, list) else headers.frames(packet)
            if [frame.is_shown for frame in frames] != [False] * (len(frames) - 1) + [True]:
                slots, frames = None, []
            for number, frame in enumerate(frames, start=-len(frames)):
                here = (place, number)
                if frame.is_key:
                    slots, key = [here] * 8, here
                if slots is None:
                    break
                named = {held for slot, held in enumerate(slots) if frame.refers >> slot & 1}
                # Decoders take nothing before a keyframe, not even frames that refer to none.
                refers.append(set() if frame.is_key else named or {key})
                if frame.refreshes and not frame.is_repeat:
                    slots = [here if frame.refreshes >> slot & 1 else held for slot, held in enumerate(slots)]
            all_refers.append(None if slots is None else refers)
        return all_refers


def part_of_unit(packet: memoryview, numbers: Set[int]) -> bytes:
    """Some frames of a packet, and what belongs to none.

    Args:
        packet: one whose headers were understood.
        numbers: of the frames, counted from the last, -1.

    Returns:
        content of a packet.
    """
    units = list(_units(packet))
    number = -sum(kind in (_FRAME_HEADER, _FRAME) for kind, _, _ in units) - 1
    parts, is_in = [], True
    for (kind, start, _), end in zip(units, [start for _, start, _ in units[1:]] + [len(packet)], strict=True):
        if kind in (_FRAME_HEADER, _FRAME):
            number += 1
            is_in = number in numbers
        if is_in:
            parts.append(packet[start:end])
    return b"".join(parts)


@dataclass(frozen=True)
class _Sequence:
    screen_content: int  # 2: each frame says
    integer_mv: int
    order_hint_bits: int


class _Bits:
    def __init__(self, data: memoryview) -> None:
        self._value, self._left = int.from_bytes(data[:64], "big"), 8 * min(len(data), 64)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("header too short")
        return self._value >> self._left & (1 << count) - 1

    def refuse(self, count: int = 1) -> None:
        """Bits that only streams have that this does not read: several layers, frame ids, decoder models."""
        if self.take(count):
            raise ValueError("a stream of a rare kind")


def _units(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Kind, place and payload of each OBU; the last may lack its size."""
    place = 0
    while place < len(data):
        start, head = place, data[place]
        place += 2 if head & 0b100 else 1
        size = len(data) - place
        if head & 0b10:
            size = shift = 0
            while True:
                byte = data[place]
                place += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        yield head >> 3 & 0b1111, start, data[place : place + size]
        place += size


def _sequence(obus: bytes) -> _Sequence | None:
    try:
        for kind, _, payload in _units(memoryview(obus)):
            if kind == _SEQUENCE_HEADER:
                return _sequence_header(payload)
    except (IndexError, ValueError):
        pass
    return None


def _sequence_header(payload: memoryview) -> _Sequence:
    bits = _Bits(payload)
    bits.take(3)  # seq_profile
    bits.refuse(2)  # still_picture, reduced_still_picture_header
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        bits.refuse(2)  # equal_picture_interval (a number of unknown length follows), decoder_model_info_present_flag
    has_delay = bits.take(1)  # initial_display_delay_present_flag
    bits.refuse(5)  # operating_points_cnt_minus_1
    bits.take(12)
    if bits.take(5) > 7:  # seq_level_idx
        bits.take(1)
    if has_delay and bits.take(1):
        bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits + height_bits)
    bits.refuse()  # frame_id_numbers_present_flag
    bits.take(3 + 4)  # use_128x128_superblock ... enable_dual_filter
    has_order = bits.take(1)
    if has_order:
        bits.take(2)
    screen_content = 2 if bits.take(1) else bits.take(1)
    integer_mv = 2
    if screen_content:
        integer_mv = 2 if bits.take(1) else bits.take(1)
    return _Sequence(screen_content, integer_mv, bits.take(3) + 1 if has_order else 0)


def _frame(payload: memoryview, sequence: _Sequence) -> Av1Frame:
    if payload[0] & 0x80:  # show_existing_frame; one that shows a keyframe refreshes everything
        return Av1Frame(True, False, _ALL_SLOTS, refers=1 << (payload[0] >> 4 & 0b111), is_repeat=True)
    bits = _Bits(payload)
    bits.take(1)
    kind, is_shown = bits.take(2), bool(bits.take(1))  # 0 key, 1 inter, 2 intra only, 3 switch
    if kind == 0 and is_shown:
        return Av1Frame(True, True, _ALL_SLOTS, refers=0)
    if kind == 3:
        return Av1Frame(is_shown, False, _ALL_SLOTS, _ALL_SLOTS)
    if not is_shown:
        if kind == 0:
            raise ValueError("a keyframe that is shown later")
        bits.take(1)  # showable_frame
    is_resilient = bits.take(1)
    bits.take(1)  # disable_cdf_update
    screen_content = bits.take(1) if sequence.screen_content == 2 else sequence.screen_content
    if screen_content and sequence.integer_mv == 2:
        bits.take(1)
    bits.take(1 + sequence.order_hint_bits)  # frame_size_override_flag, order_hint
    if kind == 1 and not is_resilient:
        bits.take(3)  # primary_ref_frame
    refreshes = bits.take(8)
    if kind == 2:
        return Av1Frame(is_shown, False, refreshes, refers=0)
    # ref_order_hint may declare slots empty; frame_refs_short_signaling chooses among all.
    if sequence.order_hint_bits and (is_resilient or bits.take(1)):
        return Av1Frame(is_shown, False, refreshes, _ALL_SLOTS)
    refers = 0
    for _ in range(7):
        refers |= 1 << bits.take(3)  # ref_frame_idx
    return Av1Frame(is_shown, False, refreshes, refers)
