"""The video files that are there, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from octvideo.errors import UserError
from octvideo.video import VIDEO_SUFFIXES


def walk_videos(root: Path, *, leave_out: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Video files under a folder, relative to it, sorted folder by folder. Links are followed, hidden names are not.

    Raises:
        UserError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"can't read the folder {error.filename}: {error.strerror}") from error

    start = len(str(root).rstrip(os.sep)) + 1
    for here, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        if _leads_back(here):
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (not leave_out or Path(here, name) not in leave_out)
        )
        inside = here[start:]
        for name in sorted(files):
            # A dot and an underscore begin the names of macOS's own files, which are no videos.
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith("."):  # noqa: PTH122
                yield os.path.join(inside, name)  # noqa: PTH118


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

    def find(self, names: tuple[str, ...]) -> str | None:
        """The path of the first of these names that is there; it then counts as used."""
        for name in names:
            folder, _, stem = name.rpartition("/")
            for number in self._numbered(stem):
                path = self.paths[number]
                if not folder or path.rpartition(os.sep)[0].rpartition(os.sep)[2] == folder:
                    self._used[number] = 1
                    return path
        return None

    def _numbered(self, stem: str) -> list[int]:
        return [self._first[stem], *self._others.get(stem, [])] if stem in self._first else []

    def unused(self) -> Iterator[str]:
        """Files that no `find` has given."""
        return (path for path, used in zip(self.paths, self._used, strict=True) if not used)
