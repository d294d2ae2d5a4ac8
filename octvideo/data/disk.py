"""The video files that are there, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from octvideo.files import walk_videos


class VideoFiles:
    """The videos under a folder, found by `stem` or `folder/stem`, so that another suffix is no other video.

    Args:
        root: the folder.
        leave_out: folders in it that are not looked into.
    """

    def __init__(self, root: Path, *, leave_out: frozenset[Path] = frozenset()) -> None:
        self.root = root
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
            numbers = self._numbered(stem)
            if len(numbers) > 1:
                numbers.sort(key=lambda number: split not in self._outer(number))
            for number in numbers:
                path = self.paths[number]
                if others and others.intersection(self._outer(number)):
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
