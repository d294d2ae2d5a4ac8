"""What a reader reads and gives: a file here or behind an address, or its content in memory; frames, or one error with
file and reason. And how frames become small during decoding.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.stores import StoredFile, StoreError, StoreSetupError, is_remote, open_file, shown


@dataclass(frozen=True)
class VideoBytes:
    """A video file in memory.

    Args:
        name: that messages call it by.
        content: of the file.
    """

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class VideoArray:
    """A video that is decoded already.

    Args:
        frames: RGB, uint8 (T, H, W, 3), a tensor or an array; T of 1 or more.
        fps: frames per second, which only views with a `target_fps` need to know.
        name: that messages call it by.
    """

    frames: Tensor | np.ndarray = field(repr=False)
    fps: float = 30.0
    name: str = "array"

    def __str__(self) -> str:
        return self.name

    def checked_frames(self) -> Tensor:
        """The frames as a tensor on the CPU.

        Raises:
            UserError: frames or fps that can't be meant.
        """
        if self.frames.ndim != 4:
            raise UserError(f"{self}: got shape {tuple(self.frames.shape)}, expected frames (T, H, W, 3)")
        if not isinstance(self.fps, Real) or not 0 < self.fps <= 1000:
            raise UserError(f"{self}: got fps {self.fps}, expected more than 0 and at most 1000")
        return rgb_image(self.frames, str(self))


@dataclass(frozen=True, eq=False)
class RemoteVideo:
    """A video file behind an address, too large to be held whole: it is read block by block.

    Args:
        name: that messages call it by.
        file: that blocks are read from.
    """

    name: str
    file: StoredFile = field(repr=False)

    def __str__(self) -> str:
        return self.name


Source = str | Path | VideoBytes | RemoteVideo


def rgb_image(given: Tensor | np.ndarray, name: str) -> Tensor:
    """A frame as uint8 (H, W, 3), or frames as (T, H, W, 3), on the CPU.

    Raises:
        UserError: it is something else.
    """
    # Of an array that may not be written, a copy: PyTorch warns of the array itself.
    image = given if isinstance(given, Tensor) else torch.from_numpy(np.require(given, requirements=["C", "W"]))
    if image.dtype != torch.uint8 or image.shape[-1:] != (3,) or 0 in image.shape:
        got = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        raise UserError(f"{name}: got {got}, expected RGB, uint8 (..., H, W, 3)")
    return image.cpu().contiguous()


def fetched(source: Source) -> Source:
    """What can be opened: the content of a small file behind an address, a `RemoteVideo` of a larger one, any other
    source as it is. Only a `str` may be an address.

    Raises:
        VideoReadError: there is nothing at the address, or it can't be reached.
        StoreSetupError: no address of its kind can be read here.
    """
    if not is_remote(source):
        return source
    name = str(source)
    with of_store(name):
        try:
            content = open_file(name)
        except StoreSetupError:  # which is no trouble of this video alone
            raise
        except UserError as error:
            raise VideoReadError(name, str(error).removeprefix(f"{shown(name)}: ")) from None
    return VideoBytes(shown(name), content) if isinstance(content, bytes) else RemoteVideo(shown(name), content)


def num_bytes(source: Source) -> int:
    """The size of a source that has been `fetched`.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(source, RemoteVideo):
        return source.file.size
    return len(source.content) if isinstance(source, VideoBytes) else Path(source).stat().st_size


@contextlib.contextmanager
def of_store(source: Source) -> Iterator[None]:
    """Raises a store's error as the video's."""
    try:
        yield
    except StoreError as error:
        raise VideoReadError(source, str(error), may_pass=error.may_pass) from None


def for_ffmpeg(source: Source) -> str | io.BufferedIOBase:
    """What a reader opens. An address must be `fetched` before.

    A path is absolute: FFmpeg takes a name such as `concat:...` or `a:b.mp4` for something else; after a slash it
    does not.
    """
    if isinstance(source, RemoteVideo):
        return source.file.reader()
    return io.BytesIO(source.content) if isinstance(source, VideoBytes) else str(Path(source).absolute())


_PAGE_BYTES = 100  # of which the first say that it is HTML


def check_is_file(source: Source) -> None:
    """Raises where there is nothing to read, found without a reader.

    Raises:
        VideoReadError: no file is there, or an empty one. One that is not there may come, as with a disk.
    """
    if isinstance(source, RemoteVideo):
        return
    if isinstance(source, VideoBytes):
        if source.content[:_PAGE_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise VideoReadError(source, "it is a page of the web, and no video; a folder's address ends with a slash")
        is_empty = not source.content
    else:
        file = Path(source)
        if not file.is_file():
            if file.exists():
                raise VideoReadError(
                    source, "it is a folder" if file.is_dir() else "it is a pipe or a device, and no file"
                )
            raise VideoReadError(source, "no such file", may_pass=True)
        is_empty = not file.stat().st_size
    if is_empty:
        raise VideoReadError(source, "the file is empty")


# From full-size frames (n, H, W, C) to what is kept of each of them, (n, ...), uint8 both.
Resize = Callable[[Tensor], Tensor]
# Full-size frames that are held at a time: 240 of 340x256 pixels, two of 4K.
CHUNK_BYTES = 64 * 2**20


class VideoReadError(UserError):
    """A video that can't be read.

    Args:
        path: of the video; of an address what may be shown.
        reason: in one line.
        may_pass: the same video may be read later: it is the trouble of a network, or the file is not there.
    """

    def __init__(self, path: object, reason: str, *, may_pass: bool = False) -> None:
        self.path, self.reason, self.may_pass = shown(str(path)), reason, may_pass
        super().__init__(f"cannot read video '{self.path}': {reason}")

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes pickle their errors
        return VideoReadError, (self.path, self.reason), {"may_pass": self.may_pass}


class ReaderFailure(Exception):  # noqa: N818 (it is no error of the file: another reader may do better)
    """A reader could not read a file, or its frames are not sure to be the right ones."""


@dataclass(frozen=True)
class Frames:
    """The frames that were asked for, each held once.

    Args:
        frames: distinct frames in the order of the video, uint8 (D, H, W, C), RGB; or what `resize` made of them.
        places: for each frame index asked for, its index among the D, int64 in the shape they were asked in.
        num_frames: of the video, or ticks of the clock if there is one.
        decoder: that read it.
        num_missing: frames that the file announces and that can't be read.
    """

    frames: Tensor
    places: Tensor
    num_frames: int
    decoder: str
    num_missing: int = 0


class FrameCollector:
    """Takes full-size frames chunk by chunk and keeps what `resize` makes of each.

    Args:
        num_frames: D, that will come.
        resize: None keeps frames as they are.
    """

    def __init__(self, num_frames: int, resize: Resize | None) -> None:
        self.num_frames, self.resize = num_frames, resize
        self.done = 0
        self._kept: Tensor | None = None

    def chunk_frames(self, frame_bytes: int) -> int:
        """How many full-size frames may be held at a time."""
        return self.num_frames if self.resize is None else min(max(CHUNK_BYTES // frame_bytes, 1), self.num_frames)

    def add(self, frames: Tensor) -> None:
        """The next frames, uint8 (n, H, W, C); the memory is free for others afterwards if they are not all D."""
        small = frames if self.resize is None else self.resize(frames)
        if len(small) != len(frames) or small.dtype != torch.uint8:
            got = f"{small.dtype} {tuple(small.shape)}"
            raise ValueError(f"resize: got {got}, expected uint8 ({len(frames)}, ...), a row for each frame")
        if len(small) == self.num_frames:
            self._kept = small  # all at once: no copy
        else:
            if self._kept is None:
                self._kept = _empty_like(small, self.num_frames)
            self._kept[self.done : self.done + len(small)] = small
        self.done += len(small)

    def frames(self) -> Tensor:
        """All D frames."""
        assert self._kept is not None and self.done == self.num_frames
        return self._kept


def _empty_like(chunk: Tensor, num_frames: int) -> Tensor:
    """Memory for `num_frames` frames, laid out as those of `chunk` are: channels last stay last."""
    one = torch.empty_like(chunk[0])  # keeps the order of the strides
    return torch.empty_strided((num_frames, *one.shape), (one.numel(), *one.stride()), dtype=chunk.dtype)
