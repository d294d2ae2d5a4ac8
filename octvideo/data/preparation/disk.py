"""The video files that are there, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from octvideo.errors import UserError
from octvideo.video import VIDEO_SUFFIXES


def walk_videos(root: Path, *, leave_out: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Video files under a folder, relative to it, sorted folder by folder. Links are followed, hidden names are not.

    Args:
        root: the folder.
        leave_out: folders in it that are not looked into.

    Raises:
        UserError: a folder can't be read.
    """
    yield from _walk(str(root), "", frozenset(map(str, leave_out)))


def _walk(here: str, inside: str, leave_out: frozenset[str]) -> Iterator[str]:
    folders, videos = [], []
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                # A dot and an underscore begin the names of macOS's own files, which are no videos.
                if entry.name.startswith("."):
                    continue
                is_video = os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122
                # Where a link called like a video leads is not looked up: 240,000 of them would take a minute.
                if entry.is_dir(follow_symlinks=not is_video):
                    folders.append(entry.name)
                elif is_video:
                    videos.append(entry.name)
    except OSError as error:
        raise UserError(f"can't read the folder {error.filename}: {error.strerror}") from error
    for name in sorted(videos):
        yield inside + name
    for name in sorted(folders):
        path = os.path.join(here, name)  # noqa: PTH118
        if path not in leave_out and not _leads_back(path):
            yield from _walk(path, f"{inside}{name}{os.sep}", leave_out)


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that it lies in, which would be walked for ever."""
    path = Path(folder)
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


class VideoFiles:
    """The videos under a folder, found by `stem` or `folder/stem`, so that another suffix is no other video.

    Args:
        root: the folder.
        leave_out: folders in it that are not looked into.
    """

    def __init__(self, root: Path, *, leave_out: frozenset[Path] = frozenset()) -> None:
        self.paths: list[str] = []
        self._first: dict[str, int] = {}  # of each stem
        self._others: dict[str, list[int]] = {}  # of stems that are there more than once
        for number, path in enumerate(walk_videos(root, leave_out=leave_out)):
            self.paths.append(path)
            stem = path.rpartition(os.sep)[2].rpartition(".")[0]
            if self._first.setdefault(stem, number) != number:
                self._others.setdefault(stem, []).append(number)
        self._used = bytearray(len(self.paths))

    def find(self, names: tuple[str, ...], *, split: str = "", others: frozenset[str] = frozenset()) -> str | None:
        """The path of the first of these names that is there; it then counts as used.

        Args:
            names: see `Listed`.
            split: of the list; what lies in a folder of this name is taken first.
            others: splits whose folders are not looked into: a video called by its id alone is another one there.
        """
        for name in names:
            folder, _, stem = name.rpartition("/")
            for number in sorted(self._numbered(stem), key=lambda number: split not in self._outer(number)):
                path = self.paths[number]
                if others.intersection(self._outer(number)):
                    continue
                if not folder or path.rpartition(os.sep)[0].rpartition(os.sep)[2] == folder:
                    self._used[number] = 1
                    return path
        return None

    def use(self, path: str) -> str:
        """Marks one of `paths` as used, and gives it back."""
        for number in self._numbered(path.rpartition(os.sep)[2].rpartition(".")[0]):
            if self.paths[number] == path:
                self._used[number] = 1
        return path

    def _outer(self, number: int) -> list[str]:
        """The outermost folders, train/ or videos/train/ in Kinetics."""
        return list(Path(self.paths[number]).parts[:-1][:2])

    def _numbered(self, stem: str) -> list[int]:
        return [self._first[stem], *self._others.get(stem, [])] if stem in self._first else []

    def unused(self) -> Iterator[str]:
        """Files that no `find` has given."""
        return (path for path, used in zip(self.paths, self._used, strict=True) if not used)
