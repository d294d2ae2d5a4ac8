"""Which files to check: videos, folders searched for them, lists, and the csv of Kinetics."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octvideo.class_names import ClassIndex
from octvideo.data.kinetics import is_kinetics_csv, read_kinetics_csv
from octvideo.data.manifest import read_records
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_video, walk_videos

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})


@dataclass
class Selection:
    """Files to check, each once.

    Args:
        root: folder that their names start from.
        num_twice: that were named more than once.
        num_passed_over: files of folders that are not called like videos.
        closed: folders that can't be listed, with the reason.
    """

    root: str
    num_twice: int = 0
    num_passed_over: int = 0
    closed: list[tuple[str, str]] = field(default_factory=list)
    _names: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        """Names: from the root where they lie in it, else absolute."""
        start = 0
        for end in self._ends:
            yield os.fsdecode(bytes(self._names[start:end]))
            start = end

    def add(self, name: str) -> None:
        """One more."""
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))

    def path(self, name: str) -> str:
        """Where a file is."""
        return os.path.join(self.root, name)  # noqa: PTH118


def select(sources: Sequence[Path], *, root: Path | None = None) -> Selection:
    """The files of all sources; links are followed.

    Args:
        sources: videos; folders, searched for files that are called like videos; lists and csv, known by their
            suffix (.txt, .csv, .tsv, .lst, .list).
        root: that paths in lists, and the names of files, start from; None takes the folder that all sources share.

    Raises:
        UserError: a source is not there, or lists no video.
    """
    for source in sources:
        if not os.path.lexists(source):
            raise UserError(f"nothing at {source}: expected a video, a folder, a list or a csv of Kinetics")
    if root is None:
        folders = [source if source.is_dir() else source.absolute().parent for source in sources]
        root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    elif not root.is_dir():
        raise UserError(f"no folder {root}")
    selection = Selection(os.path.abspath(root))  # noqa: PTH100
    real_folders: dict[str, str] = {}
    seen: set[int] = set()
    for source in sources:
        before = len(selection) + selection.num_twice
        for path in _paths(source, root, selection):
            folder, base = os.path.split(os.path.abspath(path))  # noqa: PTH100
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            # Hashes, for 240,000 strings take 40 MB; that two of them meet is as good as impossible.
            key = hash((real_folders[folder], base))
            if key in seen:
                selection.num_twice += 1
                continue
            seen.add(key)
            selection.add(f"{folder.rstrip('/')}/{base}".removeprefix(selection.root.rstrip("/") + "/"))
        if source.is_dir() and len(selection) + selection.num_twice == before and not selection.closed:
            raise UserError(f"no videos in {source}: looked for {', '.join(sorted(VIDEO_SUFFIXES))}")
    return selection


def _paths(source: Path, root: Path, selection: Selection) -> Iterator[str]:
    if source.is_dir():

        def passed_over(path: str) -> None:
            selection.num_passed_over += 1

        def closed(folder: str, reason: str) -> None:
            selection.closed.append((folder, reason))

        videos = walk_videos(source, on_other=passed_over, on_closed=closed)
        yield from (os.path.join(source, path) for path in videos)  # noqa: PTH118
    elif source.suffix.lower() not in LIST_SUFFIXES:
        yield str(source)
    else:
        classes = _AnyClass()
        if is_kinetics_csv(source):
            records = read_kinetics_csv(source, root=root, classes=classes, labelled=False)
        else:
            records = read_records(source, root=root, classes=classes, labelled=False)
        yield from (record.path for record in records)


class _AnyClass(ClassIndex):
    """Every name and number is a class: for checking, labels do not matter."""

    def __init__(self) -> None:
        super().__init__([])
        self.names = range(2**62)  # type: ignore[assignment]

    def find(self, name: str) -> int | None:
        return None if is_video(name) else 0
