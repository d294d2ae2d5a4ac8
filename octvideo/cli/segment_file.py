"""Where `octvideo timeline` writes segments: `--segments FILE|FOLDER`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import whole_text
from octvideo.inference.segment_files import OF_ONE_VIDEO, WRITERS
from octvideo.inference.segments import Segment
from octvideo.stores import file_name


class SegmentFile:
    """A file of segments, or a folder with all kinds of files for each video.

    Args:
        path: of it.
        num_videos: that there will be.

    Raises:
        UserError: a kind of file that there is not, or that holds one video.

    `is_table`: lines can be added to it.
    """

    def __init__(self, path: Path, num_videos: int) -> None:
        self.path, self._suffix = path, path.suffix.lower()
        self._num_called: Counter[str] = Counter()
        self._is_folder = path.is_dir() or not self._suffix
        self.is_table = self._suffix == ".csv" and not self._is_folder
        if self._is_folder:
            path.mkdir(parents=True, exist_ok=True)
            _check_writable(path)
            return
        if self._suffix not in WRITERS:
            raise UserError(f"--segments {path}: got {path.suffix}, expected {', '.join(WRITERS)}, or a folder")
        if self._suffix in OF_ONE_VIDEO and num_videos != 1:
            raise UserError(f"--segments {path}: subtitles are of one video, got {num_videos}: name a folder")
        if not path.absolute().parent.is_dir():
            raise UserError(f"--segments {path}: no folder {path.parent}")
        _check_writable(path.absolute().parent)

    def add(self, video: str, segments: Sequence[Segment], names: Sequence[str]) -> None:
        """Writes the files of a video into the folder."""
        if self._is_folder:
            name = file_name(video)
            self._num_called[name] += 1
            if self._num_called[name] > 1:  # of another folder
                name += f".{self._num_called[name]}"
            for suffix, text_of in WRITERS.items():
                with whole_text(self.path / f"{name}{suffix}") as file:
                    file.write(text_of({video: segments}, names))

    def write(self, videos: dict[str, list[Segment]], names: Sequence[str]) -> None:
        """Writes the file of all videos that are done."""
        if not self._is_folder and videos:
            with whole_text(self.path) as file:
                file.write(WRITERS[self._suffix](videos, names))


def _check_writable(folder: Path) -> None:
    """Not at the end of hours of work."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"--segments: can't write into {folder}")
