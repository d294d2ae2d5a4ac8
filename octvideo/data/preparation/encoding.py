"""One video re-encoded for training: short side, short GOP, no sound, H.264, upright, every frame at its own time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange

from octvideo.files import is_full_disk, one_line, whole_file
from octvideo.stores import StoreError, is_remote, shown, staged
from octvideo.video import Source, VideoReadError
from octvideo.video.frames import fetched, for_ffmpeg, num_bytes
from octvideo.video.isolated import Alive
from octvideo.video.pyav_file import OPEN_OPTIONS
from octvideo.video.pyav_reader import PyavVideo


@dataclass(frozen=True)
class EncodingSettings:
    """How videos are encoded.

    Args:
        short_side_px: of the result; smaller videos keep their size.
        gop_frames: frames from a keyframe to the next: the most that a clip costs beside its own frames.
        crf: quality of x264, 0 the best, 51 the worst.
        preset: of x264: speed against size.
    """

    short_side_px: int = 256
    gop_frames: int = 12
    crf: int = 23
    preset: str = "fast"


@dataclass(frozen=True)
class Encoded:
    """What became of one video.

    Args:
        frames: in the result.
        source_bytes: of the source.
        bytes: of the result.
        damage: what of the source could not be decoded; "" where all could.
        is_source: whether the result is the source, byte for byte.
    """

    frames: int
    source_bytes: int
    bytes: int
    damage: str = ""
    is_source: bool = False


class EncodingError(Exception):
    """Nothing of a video can be encoded; the message is one line."""


def encode_job(item: tuple[str, str, str, EncodingSettings], alive: Alive) -> Encoded | str:
    """Work for an `IsolatedPool`: what became of a video, or why there is nothing.

    Args:
        item: name in the report, source, target, settings. What has an address as its target is put there, whole.
        alive: called for every frame.
    """
    av.logging.set_level(None)
    _, source, target, settings = item
    try:
        if not is_remote(target):
            return encode(source, Path(target), settings, alive)
        with staged(target, alive) as file:
            return encode(source, file, settings, alive)
    except EncodingError as error:
        return str(error)
    except StoreError as error:
        return f"can't write {shown(target)}: {error}"


def encode(
    given: str | Path, target: Path, settings: EncodingSettings, alive: Alive = lambda done=0, total=0, /: None
) -> Encoded:
    """Re-encodes a video; `target` appears when it is whole.

    Rotation is applied to the pixels, sizes are even, pixels 8-bit 4:2:0. Frames are never repeated or left out to make
    the rate constant. What can't be decoded is left out, and said. A source that has all that is asked for already
    is copied where encoding would make it no smaller.

    Args:
        given: any video that FFmpeg reads, or its address.
        target: an .mp4 in a folder that is there.
        settings: how.
        alive: called for every frame.

    Raises:
        EncodingError: not one frame can be decoded, or it can't be written.
        OSError: the disk is full.
    """
    try:
        source = fetched(given)
        with whole_file(target) as part:
            frames, damage = _encode(source, part, settings, alive)
            source_bytes = num_bytes(source)
            keeps = part.stat().st_size >= source_bytes and not damage and _fulfils(source, settings, frames)
            if keeps:
                _copy(source, part)
    except VideoReadError as error:
        raise EncodingError(error.reason) from error
    except (OSError, ValueError, av.FFmpegError) as error:
        if is_full_disk(error):  # no fault of the video's
            raise
        raise EncodingError(one_line(error)) from error
    return Encoded(frames, source_bytes, target.stat().st_size, damage, keeps)


def _copy(source: Source, part: Path) -> None:
    opened = for_ffmpeg(source)
    if isinstance(opened, str):
        shutil.copyfile(opened, part)
        return
    with part.open("wb") as file:
        shutil.copyfileobj(opened, file, 2**20)


def _fulfils(source: Source, settings: EncodingSettings, frames: int) -> bool:
    """Whether a source is what encoding would make of it, but for its quality.

    Args:
        source: undamaged.
        settings: that are asked for.
        frames: in it.
    """
    try:
        with av.open(for_ffmpeg(source), **OPEN_OPTIONS) as container, PyavVideo(source, 1) as video:
            if "mp4" not in container.format.name or [stream.type for stream in container.streams] != ["video"]:
                return False
            stream, first = container.streams.video[0], next(container.decode(video=0))
            is_upright = _quarters(first) == 0 and first.color_range != ColorRange.JPEG
            size = _size(first.width, first.height, settings.short_side_px) == (first.width, first.height)
            codec = (stream.codec_context.name, first.format.name) == ("h264", "yuv420p")
            packets = video.packets
            gaps = [b - a for a, b in pairwise([*packets.starts, frames])]
            return is_upright and size and codec and packets.num_frames == frames and max(gaps) <= settings.gop_frames
    except (av.FFmpegError, ValueError, VideoReadError):
        return False


def _encode(
    source: Source, part: Path, settings: EncodingSettings, alive: Callable[[int, int], None]
) -> tuple[int, str]:
    with av.open(for_ffmpeg(source), **OPEN_OPTIONS) as container:
        video = container.streams.best("video")
        if not isinstance(video, av.VideoStream) or video.codec_context is None:
            raise EncodingError("no video stream that can be decoded")
        video.thread_count = 1  # other videos are encoded beside this one
        bad_packets: list[str] = []
        frames = _decoded(container, video, bad_packets)
        first = next(frames, None)
        if first is None:
            raise EncodingError(bad_packets[0] if bad_packets else "no frame can be decoded")
        quarters = _quarters(first)
        width, height = _size(first.width, first.height, settings.short_side_px)
        base = video.time_base or Fraction(1, 90_000)
        rate = _rate(video)
        # Keyframes at even distances, and closed groups, so that readers may begin at each of them.
        groups = {"g": str(settings.gop_frames), "flags": "+cgop"}
        options = {"crf": str(settings.crf), "preset": settings.preset, **groups}
        with av.open(str(part.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream = out.add_stream("libx264", rate=rate, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = (width, height) if quarters % 2 == 0 else (height, width)
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            stream.codec_context.time_base = base
            stream.codec_context.color_range = ColorRange.MPEG
            for tag in ("colorspace", "color_primaries", "color_trc"):
                setattr(stream.codec_context, tag, getattr(video.codec_context, tag))
            step = max(round(1 / (rate * base)), 1)
            count, last, start = 0, -step, first.pts or 0
            frame: av.VideoFrame | None = first
            while frame is not None:
                picture = _turned(frame, width, height, quarters)
                # Times only grow in a stream that can be encoded.
                last = last + step if frame.pts is None else max(frame.pts - start, last + 1, 0)
                picture.pts, picture.time_base, picture.pict_type = last, base, PictureType.NONE
                out.mux(stream.encode(picture))
                count += 1
                alive(count, video.frames)
                frame = next(frames, None)
            out.mux(stream.encode(None))
    damage = f"{len(bad_packets)} packets can't be decoded (the first: {bad_packets[0]})" if bad_packets else ""
    return count, damage


def _decoded(container: Any, stream: av.VideoStream, bad: list[str]) -> Iterator[av.VideoFrame]:
    """Frames in the order of display, as octvideo's readers give them; packets that can't be decoded give none."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            bad.append(one_line(error))
            return
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            bad.append(one_line(error))
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)


def _rate(video: av.VideoStream) -> Fraction:
    """Frames a second, for the encoder's rate control only: times are those of the source."""
    rate = video.average_rate or video.guessed_rate
    return Fraction(rate.numerator, rate.denominator) if rate and 1 <= rate <= 240 else Fraction(30)


def _size(width: int, height: int, short_side_px: int) -> tuple[int, int]:
    """Width and height before turning: even, of the source's shape, not larger than the source (but 2 pixels)."""
    short = min(width, height)
    scale = min(short_side_px, short)
    sides = [2 * (side * scale // short // 2) if scale == short else 2 * round(side * scale / short / 2)
             for side in (width, height)]  # fmt: skip
    return max(sides[0], 2), max(sides[1], 2)


def _quarters(frame: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise that players give the frames."""
    quarters, rest = divmod(frame.rotation, 90)
    return 0 if rest or abs(quarters) > 4 else quarters


def _turned(frame: av.VideoFrame, width: int, height: int, quarters: int) -> av.VideoFrame:
    """A frame of the new size, 8-bit 4:2:0 of narrow range, upright."""
    small = frame.reformat(width, height, "yuv420p", dst_color_range=ColorRange.MPEG, interpolation="AREA")
    if quarters % 4 == 0:
        return small
    flat = small.to_ndarray().reshape(-1)
    luma, chroma = width * height, width * height // 4
    planes = [flat[:luma].reshape(height, width)]
    planes += [flat[luma + i * chroma : luma + (i + 1) * chroma].reshape(height // 2, width // 2) for i in (0, 1)]
    turned = [np.rot90(plane, quarters) for plane in planes]
    flat = np.concatenate([plane.reshape(-1) for plane in turned])
    return av.VideoFrame.from_ndarray(flat.reshape(-1, turned[0].shape[1]), format="yuv420p")
