"""Videos and their labels, hundreds of thousands of them, in memory that loading processes share."""

from __future__ import annotations

import hashlib
import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from octvideo.stores import shown
from octvideo.video import FrameNames

_AT_ONCE = 1024  # records that an iteration takes out of the tensors together


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """Where a video lies in an archive.

    Args:
        url: of the archive, or its path.
        offset: of the video's first byte.
        size: in bytes.
    """

    url: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FrameRange:
    """The frames of a video that are images.

    Args:
        start: place of the first among the images of its folder.
        count: how many there are.
        names: of the images; None in an archive, where they follow each other.
        fps: frames per second; None where nobody has said it.
    """

    start: int
    count: int
    names: FrameNames | None = None
    fps: float | None = None


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video of a data set.

    Args:
        path: as it is opened; in an archive its name.
        label: class id, -1 where unknown; of several the first.
        archive: that holds it; None where it is a file.
        frames: of a folder of images; None where it is a video.
        others: class ids beside the first.
    """

    path: str
    label: int
    archive: ArchiveMember | None = None
    frames: FrameRange | None = None
    others: tuple[int, ...] = ()


class VideoList(Sequence[VideoRecord]):
    """A sequence of `VideoRecord`, kept as tensors: bytes of all paths, where each ends, labels, places in archives.

    Each forked loading process copies a list of Python objects, page by page, as it counts references; each spawned one
    is sent the list. Tensors are shared in both cases.

    Args:
        records: the videos, in any iterable; taken one at a time. Either all of them lie in archives, or none; either
            all are images, called alike and of one rate, or none.

    Example:
        >>> videos = VideoList([VideoRecord("a.mp4", 0), VideoRecord("b.mp4", 2)])
        >>> videos[1], len(videos), videos.labels.tolist()
        (VideoRecord(path='b.mp4', label=2), 2, [0, 2])
    """

    def __init__(self, records: Iterable[VideoRecord] = ()) -> None:
        text, ends, labels, places = bytearray(), array("q", [0]), array("q"), array("q")
        others, other_ends = array("q"), array("q", [0])
        archives: dict[str, int] = {}
        ranges, images = array("q"), FrameRange(0, 0)
        for record in records:
            # Names of files that are not UTF-8 come as surrogates, and go back as those.
            text += record.path.encode("utf-8", "surrogateescape")
            ends.append(len(text))
            labels.append(record.label)
            others.extend(record.others)
            other_ends.append(len(others))
            if (member := record.archive) is not None:
                places.extend((archives.setdefault(member.url, len(archives)), member.offset, member.size))
            if record.frames is not None:
                images = record.frames
                ranges.extend((images.start, images.count))
        self._archives = list(archives)
        self._images, self._ranges = images, _tensor(ranges, torch.int64).view(-1, 2)  # (N,2); (0,2) for videos
        self._places = _tensor(places, torch.int64).view(-1, 3)  # (N,3): archive, offset, size; (0,3) for files
        self._text = _tensor(text, torch.uint8)
        self._ends = _tensor(ends, torch.int64)
        self.labels: Tensor = _tensor(labels, torch.int64)  # (N,), of several the first
        self._others = _tensor(others, torch.int64)  # of all videos one after another
        self._other_ends = _tensor(other_ends if len(others) else array("q"), torch.int64)  # (N + 1,), or (0,)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> VideoList: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | VideoList:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        return self._at(index % len(self))

    def __iter__(self) -> Iterator[VideoRecord]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self._between(first, min(first + _AT_ONCE, len(self)))

    def take(self, indices: Sequence[int]) -> VideoList:
        """Some of the videos, in that order."""
        return VideoList(self._at(index) for index in indices)

    @property
    def has_several(self) -> bool:
        """Whether a video has several labels."""
        return len(self._others) > 0

    def class_counts(self, num_classes: int) -> Tensor:
        """How many videos each class has, int64 (K,)."""
        return torch.bincount(self._pairs()[1], minlength=num_classes)

    def members(self, num_classes: int) -> list[Tensor]:
        """The videos of each class, as their places in the list, in order: K times int64 (n,)."""
        videos, classes = self._pairs()
        order = (classes * len(self) + videos).argsort()
        return list(videos[order].split(self.class_counts(num_classes).tolist()))

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Each label of each video: places of the videos, and classes."""
        videos = (self.labels >= 0).nonzero()[:, 0]
        first = videos, self.labels[videos]
        if not self.has_several:
            return first
        more = torch.arange(len(self)).repeat_interleave(self._other_ends.diff())
        return torch.cat([first[0], more]), torch.cat([first[1], self._others])

    def digest(self, root: str) -> str:
        """SHA-256 over all paths in their order, without `root` in front: the same where a data set has moved, and
        where addresses are signed anew.
        """
        text = self._text.numpy().tobytes()
        paths = (text[start:end] for start, end in itertools.pairwise(self._ends.tolist()))
        if b"://" in text:  # before the root is taken away: a rest is no address
            names = (path.decode("utf-8", "surrogateescape") for path in paths)
            paths = (shown(name).encode("utf-8", "surrogateescape") for name in names)
        prefix = f"{shown(root)}/".encode("utf-8", "surrogateescape")
        paths = (path.removeprefix(prefix) for path in paths)
        return hashlib.sha256(b"\0".join(paths)).hexdigest()

    def _at(self, index: int) -> VideoRecord:
        return next(self._between(index, index + 1))

    def _between(self, first: int, last: int) -> Iterator[VideoRecord]:
        ends = self._ends[first : last + 1].tolist()
        text = self._text[ends[0] : ends[-1]].numpy().tobytes()
        places, ranges = self._places[first:last].tolist(), self._ranges[first:last].tolist()
        others: list[list[int]] = []
        if self.has_several:
            bounds = self._other_ends[first : last + 1].tolist()
            others = [self._others[start:end].tolist() for start, end in itertools.pairwise(bounds)]
        for index, label in enumerate(self.labels[first:last].tolist()):
            path = text[ends[index] - ends[0] : ends[index + 1] - ends[0]].decode("utf-8", "surrogateescape")
            archive, *place = places[index] if places else [None]
            member = None if archive is None else ArchiveMember(self._archives[archive], *place)
            frames = None
            if ranges:
                start, count = ranges[index]
                frames = FrameRange(start, count, self._images.names, self._images.fps)
            yield VideoRecord(path, label, member, frames=frames, others=tuple(others[index]) if others else ())

    def __repr__(self) -> str:
        return f"VideoList({len(self)} videos)"


def _tensor(values: bytearray | array[int], dtype: torch.dtype) -> Tensor:
    """A tensor of its own memory: a buffer of Python's could not be resized or shared."""
    return torch.frombuffer(values, dtype=dtype).clone() if len(values) else torch.empty(0, dtype=dtype)
