"""A video file as distinct frames: one call in front of several readers, which give the same frames.

A new reader is a file with its `read`, a name in `Decoder` and a row of `_READERS`.

`auto` is PyAV, for every file. decord costs more CPU time (docs/speed.md), and its answers on damaged files vary:
its threads make it a matter of luck whether an error after the wanted frames is seen, it gives frames that FFmpeg marks
as corrupt without a word, and some files block it for ever.
No reader outlives a call, so none crosses a fork.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from octvideo.errors import UserError
from octvideo.video.decord_reader import read_decord
from octvideo.video.frames import (
    Frames,
    ReaderFailure,
    Resize,
    Source,
    VideoReadError,
    check_is_file,
    fetched,
    of_store,
)
from octvideo.video.image_frames import ImageFrames, read_image_frames
from octvideo.video.packets import Packets
from octvideo.video.pyav_reader import FewerFramesError, PyavVideo
from octvideo.video.sampling import wanted_frames
from octvideo.video.torchcodec_reader import load_torchcodec, read_torchcodec

Decoder = Literal["auto", "decord", "pyav", "torchcodec"]
Choose = Callable[[int], Tensor]

log = logging.getLogger("octvideo.video")


class _Reader(NamedTuple):
    """A reader that gets some files wrong, and refuses these. PyAV, which reads all, is none of them.

    Args:
        read: (open file, frame indices, `resize`) to frames; raises ReaderFailure.
        trouble: why it would fail at a file or may give other frames, by its packets; None where it would not.
        load: raises a UserError where its library is missing.
    """

    read: Callable[[PyavVideo, list[int], Resize | None], Tensor]
    trouble: Callable[[Packets], str | None]
    load: Callable[[], object] = bool


_READERS = {
    "decord": _Reader(read_decord, lambda packets: packets.trouble),
    "torchcodec": _Reader(read_torchcodec, lambda packets: packets.seek_trouble, load_torchcodec),
}


def read_frames(
    path: Source | ImageFrames,
    choose: Choose,
    *,
    decoder: Decoder = "auto",
    resize: Resize | None = None,
    target_fps: float | None = None,
) -> Frames:
    """Reads the frames that `choose` wants, each once, in the order of the video.

    Frame indices start at 0, in the order of display. Where a file holds fewer frames than it
    announces (cut off, rotten), `choose` is asked again with the number that can be read, and a warning says so.

    Args:
        path: of the video, or its address; or its content; or its frames as images, which no decoder of videos reads.
        choose: from the number of frames to the frame indices wanted, int64 of any shape.
        decoder: "auto" is PyAV. The others refuse what they may get wrong; "torchcodec" needs
            `pip install 'octvideo[torchcodec]'` and FFmpeg's shared libraries.
        resize: makes frames small while others are decoded, so that those of 4K or 8K are never held all at full
            size: from some of them, uint8 (n, H, W, C), to uint8 (n, ...), each by itself. It is called for one
            chunk after the other, of up to 64 MB, and again from the first where a file has to be read again.
        target_fps: frames are chosen on a clock of this rate, from the first frame's time on: number k is the frame
            on display k / target_fps seconds later, and `choose` gets the number of ticks. None: each frame counts.

    Raises:
        VideoReadError: with file and reason.
        UserError: for an unknown decoder, one that is not there, or a rate that can't be meant.
    """
    check_decoder(decoder)
    if target_fps is not None and not 0 < target_fps <= 1000:
        raise UserError(f"target_fps: got {target_fps}, expected more than 0 and at most 1000, or none")
    if isinstance(path, ImageFrames):
        return read_image_frames(path, choose, resize=resize, target_fps=target_fps)
    path = fetched(path)
    check_is_file(path)
    with of_store(path), PyavVideo(path, 1) as video:
        packets = video.packets
        num_frames = packets.num_frames
        if num_frames == 0:
            raise VideoReadError(path, "it holds no frames")
        chosen = partial(wanted_frames, choose, time_base=packets.time_base, target_fps=target_fps)
        if decoder in ("auto", "pyav"):
            return _read_pyav(video, chosen, resize)
        trouble = _READERS[decoder].trouble(packets)
        if trouble is None:
            wanted, places, num_frames = chosen(packets.times)
            try:
                return Frames(_READERS[decoder].read(video, wanted, resize), places, num_frames, decoder)
            except ReaderFailure as failure:
                trouble = str(failure)
        raise VideoReadError(path, f"{trouble} (with decoder '{decoder}'; 'auto' takes PyAV)")


def check_decoder(decoder: str) -> None:
    """Raises what would be wrong with all files alike.

    Raises:
        UserError: an unknown decoder, or one whose library is missing.
    """
    if decoder not in get_args(Decoder):
        *others, last = map(repr, get_args(Decoder))
        raise UserError(f"decoder: got {decoder!r}, expected {', '.join(others)} or {last}")
    if decoder in _READERS:
        _READERS[decoder].load()


def _read_pyav(
    video: PyavVideo, chosen: Callable[[list[int]], tuple[list[int], Tensor, int]], resize: Resize | None
) -> Frames:
    packets = video.packets
    times, announced = packets.times, packets.num_frames + packets.num_missing
    while len(times) > 1:
        wanted, places, num_frames = chosen(times)
        try:
            frames = video.read(wanted, resize)
        except FewerFramesError as fewer:
            # Fewer each time, so this ends.
            times = _times_of(fewer, times)
            continue
        if len(times) - 1 < announced:
            log.warning("%s: only %d of its %d frames can be read", video.path, len(times) - 1, announced)
        return Frames(frames, places, num_frames, "pyav", announced - (len(times) - 1))
    raise VideoReadError(video.path, "no frame can be decoded")


def _times_of(fewer: FewerFramesError, announced: list[int]) -> list[int]:
    """Times of the frames that came, and the end of the last."""
    if not fewer.times:
        return announced[: fewer.num_frames + 1]
    return [*fewer.times, max(announced[-1], fewer.times[-1] + 1)]
