"""The sound of a video, taken over into another file: copied where that takes it, else encoded anew."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

from octvideo.files import one_line

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class Sound:
    """Takes the sound of a video over into another.

    Args:
        output: the file.
        container: of the source, of which nothing else is read.
        played: codecs that are copied; None is any.
        origin_sec: time in the source that is 0 in the output.
        notes: get a line for what is not as in the source.
    """

    def __init__(
        self, output: Any, container: Any, played: frozenset[str] | None, origin_sec: Fraction, notes: list[str]
    ) -> None:
        self._output, self._origin_sec, self._notes = output, origin_sec, notes
        self._tracks: dict[int, _Copied | _Encoded] = {}
        self._packet: Any = None
        streams = [stream for stream in container.streams if stream.type == "audio"]
        for stream in streams:
            if track := self._track(stream, played):
                self._tracks[stream.index] = track
        chosen = [stream for stream in streams if stream.index in self._tracks]
        self._packets = iter(container.demux(*chosen)) if chosen else iter(())
        self._next()

    def _track(self, stream: Any, played: frozenset[str] | None) -> _Copied | _Encoded | None:
        if stream.codec_context is None or not stream.time_base:
            self._notes.append("sound is left out: FFmpeg has no decoder for it")
            return None
        name, kind = stream.codec_context.name, self._output.format.name
        try:
            if (played is None or _family(name) in played) and _takes(kind, stream):
                return _Copied(self._output, stream, early=kind != "matroska")
            track = _Encoded(self._output, stream)
        except (av.FFmpegError, ValueError, NotImplementedError) as error:
            self._notes.append(f"sound is left out ({name}): {one_line(error)}")
            return None
        self._notes.append(f"sound is encoded anew, to AAC: {kind} does not take it as it is ({name})")
        return track

    def write_until(self, time_sec: Fraction | None) -> None:
        """Writes the sound before a time; None is all that is left."""
        while self._packet is not None:
            packet = self._packet
            at = packet.dts if packet.dts is not None else packet.pts
            since = None if at is None else at * packet.time_base - self._origin_sec
            if time_sec is not None and since is not None and since >= time_sec:
                return
            track = self._tracks[packet.stream.index]
            shift = round(self._origin_sec / packet.time_base)
            self._output.mux(track.packets(packet, shift))
            self._next()
        if time_sec is None:
            for track in self._tracks.values():
                self._output.mux(track.end())

    def _next(self) -> None:
        self._packet = None
        try:
            self._packet = next((packet for packet in self._packets if packet.size), None)
        except (av.FFmpegError, ValueError) as error:
            self._notes.append(f"sound ends early: {one_line(error)}")


def _family(name: str) -> str:
    """`mp3` for `mp3float`: of what FFmpeg calls its decoders."""
    names = {"mp3float": "mp3", "libopus": "opus", "libfdk_aac": "aac", "aac_fixed": "aac", "ac3_fixed": "ac3"}
    return names.get(name, name)


def _takes(container: str, stream: Any) -> bool:
    """Whether a container takes a stream as it is: found out with one that is thrown away."""
    try:
        with av.open(_Nowhere(), "w", format=container) as output:
            output.add_stream_from_template(stream)
            output.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


class _Nowhere:
    """A file that forgets what is written."""

    def __init__(self) -> None:
        self._at = self._size = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class _Copied:
    """A stream of sound that is copied.

    Args:
        output: the file.
        stream: of the source.
        early: packets before the time 0 are kept: MP4 says that they are decoded and not played.
    """

    def __init__(self, output: Any, stream: Any, *, early: bool) -> None:
        self._stream, self._early = output.add_stream_from_template(stream), early
        self._last: int | None = None

    def packets(self, packet: Any, shift: int) -> list[Any]:
        """The packet, `shift` of its units earlier; nothing where its time is none that can follow."""
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None or (self._last is not None and dts <= self._last) or (not self._early and dts < shift):
            return []
        self._last = dts
        packet.pts = (packet.pts if packet.pts is not None else dts) - shift
        packet.dts = dts - shift
        packet.stream = self._stream
        return [packet]

    def end(self) -> list[Any]:
        return []


class _Encoded:
    """A stream of sound that is encoded anew.

    Args:
        output: the file.
        stream: of the source.

    Raises:
        ValueError, av.FFmpegError: it can't be.
    """

    def __init__(self, output: Any, stream: Any) -> None:
        coder = stream.codec_context
        if not coder.sample_rate or not coder.layout.nb_channels:
            raise ValueError("its header has no sample rate, or no channels")
        rate = next((rate for rate in _AAC_RATES if rate >= coder.sample_rate), _AAC_RATES[-1])
        layout = "mono" if coder.layout.nb_channels == 1 else "stereo"
        self._stream = output.add_stream("aac", rate=rate, layout=layout)
        self._stream.codec_context.bit_rate = min(64_000, 6 * rate) * (1 if layout == "mono" else 2)
        self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
        self._rate, self._samples = rate, 0
        self._first: int | None = None

    def packets(self, packet: Any, shift: int) -> list[Any]:
        """What a packet adds, `shift` of its units earlier; nothing where it is damaged."""
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError):
            return []
        made = []
        for frame in frames:
            if self._first is None:  # from here on samples are counted
                start = (frame.pts or 0) - shift if frame.time_base else 0
                self._first = max(round(start * (frame.time_base or 0) * self._rate), 0)
            frame.pts = None
            made += self._encoded(self._resampler.resample(frame))
        return made

    def end(self) -> list[Any]:
        """What is still held back."""
        if self._first is None:
            return []
        return [*self._encoded(self._resampler.resample(None)), *self._stream.encode(None)]

    def _encoded(self, frames: list[Any]) -> list[Any]:
        made = []
        assert self._first is not None
        for frame in frames:
            frame.pts, frame.time_base = self._first + self._samples, Fraction(1, self._rate)
            self._samples += frame.samples
            made += self._stream.encode(frame)
        return made
