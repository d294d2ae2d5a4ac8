"""A video's frames in the size that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from octvideo.video.reader import Decoder, Frames, read_frames
from octvideo.video.source import Source


def read_resized(
    path: Source, choose: Callable[[int], Tensor], resize: Callable[[Tensor], Tensor], *, decoder: Decoder = "auto"
) -> Frames:
    """As `read_frames`, of frames that `resize` has made smaller.

    Args:
        path: of the video; or its content.
        choose: from the number of frames to the frame numbers wanted, int64 of any shape.
        resize: from uint8 frames (n, H, W, C) to uint8 frames (n, h, w, C), each by itself: how many it gets at once
            is not said.
        decoder: see `read_frames`.

    Raises:
        VideoReadError: the video can't be read.
    """
    read = read_frames(path, choose, decoder=decoder)
    return replace(read, frames=resize(read.frames))
