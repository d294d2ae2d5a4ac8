"""Videos whose frames are images: folders of them, as TSN, mmaction2 and data sets such as Jester have them, and images
that lie in an archive one after the other.

Frame n of a folder is the image of number `first + start + n`, by the names `img_{:05d}.jpg`, first 1, start 0::

    number   1              2              3
    file     img_00001.jpg  img_00002.jpg  img_00003.jpg
    frame    0              1              2                 at 0, 1 / fps and 2 / fps seconds

Only the images that are wanted are opened. One that is missing or broken is an error that names it: what comes after it
would be another frame. torchvision decodes them: a JPEG takes it half of the time that it takes PyAV.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.files import is_hidden, natural_key, one_line
from octvideo.video.frames import FrameCollector, Frames, Resize, VideoReadError
from octvideo.video.sampling import wanted_frames

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_BLOCK = 512  # of a tar archive


@dataclass(frozen=True)
class FrameNames:
    """How the images of folders are called.

    Args:
        template: with the place of the number, as Python formats it: `img_{:05d}.jpg`.
        first: number of the first frame.

    Raises:
        UserError: it is no such template, or its images are neither JPEG nor PNG.
    """

    template: str
    first: int = 1

    def __post_init__(self) -> None:
        try:
            names = {self.template.format(number) for number in (1, 2)}
        except (ValueError, IndexError, KeyError, TypeError):
            names = set()
        if len(names) < 2 or _suffix(self.template) not in IMAGE_SUFFIXES:
            raise UserError(
                f"frame_names: got {self.template!r}, expected how images are called, with the place of their number "
                "and a suffix .jpg or .png, such as 'img_{:05d}.jpg'"
            )
        if self.first < 0:
            raise UserError(f"first_frame: got {self.first}, expected 0 or more")

    def __getitem__(self, n: int) -> str:
        return self.template.format(self.first + n)


class ImageFrames(ABC):
    """A video whose frames are images.

    Args:
        name: that messages call it by.
        num_frames: how many there are.
        fps: frames per second; None where nobody has said it.
    """

    name: str
    num_frames: int
    fps: float | None

    @abstractmethod
    def image_name(self, n: int) -> str:
        """The name of frame n."""

    @abstractmethod
    def content(self, n: int) -> bytes:
        """The bytes of its image.

        Raises:
            OSError: they can't be read.
        """

    def __str__(self) -> str:
        return self.name

    def image(self, n: int) -> Tensor:
        """Frame n, RGB, uint8 (H, W, 3).

        Raises:
            VideoReadError: it can't be read.
        """
        from torchvision.io import ImageReadMode, decode_image  # slow to import, and videos do without

        try:
            content = bytearray(self.content(n))
        except OSError as error:
            raise VideoReadError(self.name, f"its frame {self.image_name(n)}: {_in_words(error)}") from error
        if not content:
            raise VideoReadError(self.name, f"its frame {self.image_name(n)}: the file is empty")
        try:
            image = decode_image(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            raise VideoReadError(self.name, f"its frame {self.image_name(n)}: {one_line(error)}") from error
        if image.dtype != torch.uint8 or image.ndim != 3:
            got = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
            raise VideoReadError(self.name, f"its frame {self.image_name(n)}: got {got}, expected 8 bits a channel")
        return image.permute(1, 2, 0)


@dataclass(frozen=True)
class FrameFolder(ImageFrames):
    """A folder of images.

    Args:
        name: of the folder.
        num_frames: that belong to the video.
        names: of the images, by their place in the folder.
        start: place of the first frame.
        fps: see `ImageFrames`.
    """

    name: str
    num_frames: int
    names: FrameNames | tuple[str, ...]
    start: int = 0
    fps: float | None = None

    @classmethod
    def found(cls, folder: str | Path, fps: float | None = None) -> FrameFolder:
        """All images of a folder, in the natural order of their names.

        Raises:
            VideoReadError: there are none.
        """
        names = image_names(folder)
        if not names:
            raise VideoReadError(folder, "it is a folder without images")
        return cls(str(folder), len(names), tuple(names), 0, fps)

    def __str__(self) -> str:
        return self.name

    def image_name(self, n: int) -> str:
        return self.names[self.start + n]

    def content(self, n: int) -> bytes:
        with open(os.path.join(self.name, self.image_name(n)), "rb") as file:  # noqa: PTH118, PTH123 (a Path is slow)
            return file.read()


@dataclass(frozen=True)
class FrameArchive(ImageFrames):
    """Images that follow each other in a tar archive.

    Args:
        name: of the video.
        num_frames: how many they are.
        members: their part of the archive: for each a header and its content, in whole blocks.
        fps: see `ImageFrames`.

    Raises:
        VideoReadError: the part holds another number of files.
    """

    name: str
    num_frames: int
    members: bytes = field(repr=False)
    fps: float | None = None

    def __post_init__(self) -> None:
        places, at = [], 0
        while at + _BLOCK <= len(self.members):
            header = self.members[at : at + _BLOCK]
            size = header[124:136].strip(b" \0")
            if header[257:262] != b"ustar" or not size.isdigit():
                break
            places.append((at, at + _BLOCK, int(size, 8)))
            at += _BLOCK + -(-int(size, 8) // _BLOCK) * _BLOCK
        if len(places) != self.num_frames or at != len(self.members):
            raise VideoReadError(self.name, f"its archive holds {len(places)} whole images of {self.num_frames}")
        object.__setattr__(self, "_places", places)

    def __str__(self) -> str:
        return self.name

    def image_name(self, n: int) -> str:
        header = self._places[n][0]  # type: ignore[attr-defined]
        return str(self.members[header : header + 100].rstrip(b"\0").decode("utf-8", "replace"))

    def content(self, n: int) -> bytes:
        _, start, size = self._places[n]  # type: ignore[attr-defined]
        return self.members[start : start + size]


def read_image_frames(
    video: ImageFrames,
    choose: Callable[[int], Tensor],
    *,
    resize: Resize | None = None,
    target_fps: float | None = None,
) -> Frames:
    """The frames that `choose` wants, as `octvideo.video.read_frames` gives them of a file.

    Raises:
        VideoReadError: with folder, image and reason.
        UserError: there is a `target_fps`, and the video's own rate is not known.
    """
    if video.num_frames < 1:
        raise VideoReadError(video.name, "it holds no frames")
    if target_fps is not None and video.fps is None:
        raise UserError(
            f"{video}: got target_fps {target_fps} for frames whose rate nobody has said: give frame_fps, "
            "frames per second, beside it"
        )
    frame_sec = 1 / Fraction(video.fps or 1).limit_denominator(1001)
    wanted, places, num_frames = wanted_frames(choose, range(video.num_frames + 1), frame_sec, target_fps)
    collector = FrameCollector(len(wanted), resize)
    waiting: list[Tensor] = []
    shape: tuple[int, ...] = ()
    most = 0
    for n in wanted:
        image = video.image(n)
        if not shape:
            shape, most = image.shape, collector.chunk_frames(image.numel())
        elif image.shape != shape:
            (height, width, _), (h, w, _) = shape, image.shape
            got = f"{w} x {h} pixels, expected {width} x {height} as {video.image_name(wanted[0])} has"
            raise VideoReadError(video.name, f"its frame {video.image_name(n)}: got {got}")
        waiting.append(image)
        if len(waiting) == most or n == wanted[-1]:
            collector.add(torch.stack(waiting))
            waiting = []
    return Frames(collector.frames(), places, num_frames, "torchvision")


def timed_images(video: ImageFrames) -> Iterator[tuple[Tensor, float]]:
    """All frames in order, uint8 (H, W, 3), and when each is displayed, in seconds.

    Raises:
        VideoReadError: one can't be read.
        UserError: the video's rate is not known.
    """
    if video.fps is None:
        raise UserError(f"{video}: its frames have no times: give frame_fps, frames per second")
    for n in range(video.num_frames):
        yield video.image(n), n / video.fps


def image_names(folder: str | Path) -> Sequence[str]:
    """The images that lie in a folder itself, in natural order; hidden ones are none.

    Raises:
        VideoReadError: it can't be listed.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (a Path for each of a thousand names is slow)
    except OSError as error:
        raise VideoReadError(folder, one_line(error)) from error
    return sorted((name for name in names if _suffix(name) in IMAGE_SUFFIXES and not is_hidden(name)), key=natural_key)


def folders_of_images(folder: str | Path) -> Iterator[str]:
    """The folders that hold images themselves, this one or under it, in natural order."""
    for here, inner, files in os.walk(folder):
        inner[:] = sorted((name for name in inner if not is_hidden(name)), key=natural_key)
        if any(_suffix(name) in IMAGE_SUFFIXES and not is_hidden(name) for name in files):
            yield here


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path is slow)


def _in_words(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
