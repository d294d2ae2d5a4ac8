"""A video with something painted over it: the same frames at the same times, the same sound, in H.264."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from octvideo.errors import UserError
from octvideo.files import one_line, whole_file
from octvideo.video.frames import Source, VideoReadError, fetched, of_store
from octvideo.video.h264 import ENCODERS, encoder_name
from octvideo.video.pyav_file import CONVERT_OPTIONS, main_stream, open_video
from octvideo.video.sound import Sound
from octvideo.video.streaming import FileFrames, TimedFrame

# By the ending of a file: the container, and the sound that it takes and that players play there; None is any.
_PLAYED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
_CONTAINERS: dict[str, tuple[str, frozenset[str] | None]] = {
    ".mp4": ("mp4", _PLAYED),
    ".m4v": ("mp4", _PLAYED),
    ".mov": ("mov", frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le", "pcm_s16be"})),
    ".mkv": ("matroska", None),
}
OVERLAY_SUFFIXES = tuple(_CONTAINERS)
# How YUV is made of RGB, by the numbers that files say it with (ISO/IEC 23091-2), and the one for files that do not.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
}
if hasattr(Colorspace, "BT2020"):  # PyAV 18; without, such videos are written by the matrix of those that say nothing
    _MATRICES[9] = Colorspace.BT2020
_UNSAID = 2
# Sound is read ahead of frames, so that the container finds some for the frames that the encoder gives.
_AHEAD_SEC = Fraction(1, 2)


@dataclass
class OverlayReport:
    """What has become of a video.

    Args:
        num_frames: written.
        notes: what is not as in the source, a line each.
        trouble: why not all of the source could be read; "" where it could.
    """

    num_frames: int = 0
    notes: list[str] = field(default_factory=list)
    trouble: str = ""


def check_overlay(path: Path, source: Source) -> None:
    """Raises what is wrong with the name of an overlay, before hours of work.

    Raises:
        UserError: another kind of file, no folder, or the source itself.
    """
    if path.suffix.lower() not in _CONTAINERS:
        raise UserError(f"overlay {path}: got {path.suffix or 'no suffix'}, expected {', '.join(OVERLAY_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"overlay {path}: no folder {path.parent}")
    is_here = isinstance(source, str | Path) and Path(source).exists()
    if is_here and path.exists() and path.samefile(str(source)):
        raise UserError(f"overlay {path}: this is the video itself; name another file")


def write_overlay(
    source: Source,
    path: str | Path,
    paint: Callable[[np.ndarray, float], None],
    *,
    on_frame: Callable[[float], None] = lambda time_sec: None,
    played: frozenset[str] | None = None,
) -> OverlayReport:
    """Writes a video anew, painted over; the file is there when it is whole. Memory does not grow with its length.

    Frames keep their times, in .mkv to the millisecond, and their size; they are upright, and one row or column is
    added where a size is odd. Sound is copied as it is where the container takes it, and else encoded anew, to AAC.

    Args:
        source: path of the video, or its address.
        path: of the new one: .mp4, .m4v, .mov or .mkv.
        paint: is called with each frame, RGB, uint8 (H, W, 3), which it may change, and its time in seconds.
        on_frame: is called with the time of each frame that is done.
        played: codecs of sound that are copied; None is those that players play in this container.

    Raises:
        UserError: see `check_overlay`; PyAV has no encoder of H.264; the file can't be written.
        VideoReadError: no frame can be read.
    """
    path = Path(path)
    check_overlay(path, source)
    name, source = source, fetched(source)
    container, usual = _CONTAINERS[path.suffix.lower()]
    report = OverlayReport()
    with of_store(name), ExitStack() as stack:
        # One thread decodes, so that of damaged files the frames are those that are scored; more would lose some.
        frames = stack.enter_context(FileFrames(source, None))
        beside = stack.enter_context(open_video(source))  # frames come from one, sound and headers from the other
        timed = _with_durations(frames)
        first, first_duration = next(timed)  # or it can't be read
        part = stack.enter_context(whole_file(path))
        flags = {}
        if container != "matroska":  # which start each stream at a time that is rounded to the movie's own unit
            flags = {"movflags": "faststart", "movie_timescale": str(min(frames.time_base.denominator, 2**31 - 1))}
        try:
            with av.open(str(part.absolute()), "w", format=container, options=flags) as output:
                video = _Video(output, frames, first.image.numpy().shape, main_stream(source, beside), report)
                sound = Sound(output, beside, usual if played is None else played, frames.origin_sec, report.notes)
                for frame, duration in _chain(first, first_duration, timed):
                    image = video.blank(frame)
                    time_sec = frame.time * frames.time_base
                    paint(image[: video.height, : video.width], float(time_sec))
                    sound.write_until(time_sec + _AHEAD_SEC)
                    video.write(image, frame.time, duration)
                    report.num_frames += 1
                    on_frame(float(time_sec))
                    del frame
                sound.write_until(None)
                video.end()
        except VideoReadError:
            raise
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"can't write {path}: {one_line(error)}") from error
    report.trouble = frames.trouble
    return report


def _with_durations(frames: FileFrames) -> Iterator[tuple[TimedFrame, int]]:
    """Each frame and how long it stays, in the source's units."""
    before: TimedFrame | None = None
    for frame in frames:
        if before is not None:
            yield before, frame.time - before.time
        before = frame
    if before is not None:
        yield before, max(frames.end - before.time, 1)


def _chain(
    first: TimedFrame, duration: int, others: Iterator[tuple[TimedFrame, int]]
) -> Iterator[tuple[TimedFrame, int]]:
    yield first, duration
    del first
    yield from others


class _Video:
    """Takes RGB frames, and writes them in H.264.

    Args:
        output: the file.
        frames: they come from.
        shape: of a frame, (H, W, 3).
        stream: of the source, for what it says of its colours and pixels.
        report: is told what is not as in the source.
    """

    def __init__(
        self, output: Any, frames: FileFrames, shape: tuple[int, ...], stream: Any, report: OverlayReport
    ) -> None:
        self.height, self.width = shape[:2]
        self._output, self._time_base = output, frames.time_base
        self._shape = (self.height + self.height % 2, self.width + self.width % 2, 3)
        if self._shape != tuple(shape):
            grown, was = f"{self._shape[1]}x{self._shape[0]}", f"{self.width}x{self.height}"
            report.notes.append(f"{was} became {grown}, with the last row or column twice: H.264 takes even sizes")
        name = encoder_name()
        rate = frames.rate if frames.rate and 1 <= frames.rate <= 240 else Fraction(25)
        self._stream = output.add_stream(name, rate=rate, options=ENCODERS[name])
        coder = self._stream.codec_context
        coder.height, coder.width = self._shape[:2]
        coder.pix_fmt, coder.time_base = "yuv420p", self._time_base
        self._reformatter = VideoReformatter()
        given = stream.codec_context
        said = given.colorspace
        if said == _UNSAID and not given.format.is_rgb:
            self._matrix = Colorspace.DEFAULT  # as it was read; players guess again as they did
        else:
            said = said if said in _MATRICES else 1 if self.height >= 720 else 6
            self._matrix = _MATRICES[said]
        coder.colorspace = said
        coder.color_range = ColorRange.MPEG
        coder.color_primaries, coder.color_trc = given.color_primaries, given.color_trc
        if aspect := stream.sample_aspect_ratio:
            turned = (self.height, self.width) == (stream.width, stream.height) != (stream.height, stream.width)
            coder.sample_aspect_ratio = 1 / Fraction(aspect) if turned else Fraction(aspect)

    def blank(self, frame: TimedFrame) -> np.ndarray:
        """The frame's own pixels, to be painted over, uint8 (H, W, 3) of even size."""
        image = frame.image.numpy()
        odd = [(0, even - size) for even, size in zip(self._shape, image.shape, strict=True)]
        return np.pad(image, odd, mode="edge") if self._shape != image.shape else image.copy()

    def write(self, image: np.ndarray, time: int, duration: int) -> None:
        """Encodes a frame.

        Args:
            image: of `blank`.
            time: when it is displayed, in units of the source's `time_base`.
            duration: how long.
        """
        rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = self._reformatter.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=self._matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            **CONVERT_OPTIONS,
        )
        frame.pts, frame.time_base, frame.duration = time, self._time_base, duration
        self._output.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Writes what the encoder holds back."""
        self._output.mux(self._stream.encode(None))
