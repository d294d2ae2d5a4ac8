"""The official csv of Kinetics-400/600/700 beside the videos, in either layout of the field.

csv: label,youtube_id,time_start,time_end,split[,is_cc]; the test csv may lack the label.
Files: {id}_{start:06d}_{end:06d}.mp4 (the CVDF archives, flat or in class folders) or {class}/{id}.mp4.
Ids have 11 characters and may begin with - or _. Many listed videos are gone from YouTube: what is missing is
counted and said, never replaced. Good copies of broken files (CVDF's archive of replacements, unpacked) are used.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octvideo.data.class_names import ClassIndex
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, read_text

log = logging.getLogger("octvideo.data")

# Where the scripts of CVDF unpack replacement_for_corrupted_k400.tgz, and where it unpacks by itself.
REPLACEMENT_FOLDERS = ("replacement/replacement_for_corrupted_k400", "replacement_for_corrupted_k400", "replacement")
_ID_CHARACTERS = 11


@dataclass(frozen=True)
class KineticsRow:
    """One line of the csv.

    Args:
        name: {id}_{start:06d}_{end:06d}.
        youtube_id: 11 characters.
        label: class id, -1 where the csv has no labels.
        split: the column, or "".
    """

    name: str
    youtube_id: str
    label: int
    split: str


def is_kinetics_csv(file: Path) -> bool:
    """Whether a file starts with the header of the official csv."""
    with file.open("rb") as content:
        first = content.read(200).decode("utf-8", "replace").replace("\0", "")  # of UTF-16 too
    return "youtube_id" in next(csv.reader(first.splitlines()), [])


def read_rows(file: Path, *, classes: ClassIndex, labelled: bool = True) -> Iterator[KineticsRow]:
    """The lines of an official csv, one at a time.

    Args:
        file: the csv.
        classes: of the data set.
        labelled: every row must have a label.

    Raises:
        UserError: with file and line.
    """
    try:
        with io.StringIO(read_text(file), newline="") as text:
            rows = csv.DictReader(text)
            for row in rows:
                line = f"{file}:{rows.line_num}"
                name, label = _name_of(row, line), _label_of(row, line, classes, labelled)
                yield KineticsRow(name, row["youtube_id"], label, row.get("split") or "")
    except csv.Error as error:
        raise UserError(f"{file} can't be read as csv: {error}") from error


def read_kinetics_csv(file: Path, *, root: Path, classes: ClassIndex, labelled: bool = True) -> VideoList:
    """The videos of an official csv that are on the disk.

    Args:
        file: the csv.
        root: with the videos under {split}/, {name of the csv}/, videos/ or right there.
        classes: of the data set.
        labelled: every row must have a label.

    Raises:
        UserError: with file and line; or none of its videos is there.
    """
    files: KineticsFiles | None = None
    missing: list[str] = []

    def found() -> Iterator[VideoRecord]:
        nonlocal files
        for row in read_rows(file, classes=classes, labelled=labelled):
            if files is None:
                files = KineticsFiles(root, [row.split, file.stem])
            path = files.find(row)
            if path is None:
                missing.append(row.name)
            else:
                yield VideoRecord(path, row.label)

    records = VideoList(found())
    total = len(records) + len(missing)
    if total and not records:
        raise UserError(
            f"none of the {total} videos of {file} is under {root}: looked for files such as {missing[0]}.mp4 "
            f"in {root}, {root / file.stem} and class folders in them. data/README.md tells how to get them"
        )
    if missing:
        log.warning(
            "%s lists %d videos, %d of them %s not there (the first: %s)",
            file,
            total,
            len(missing),
            "is" if len(missing) == 1 else "are",
            missing[0],
        )
    if files is not None and files.replaced:
        log.info("%s: %d videos are taken from %s", file, files.replaced, files.replacement_folder)
    return records


class KineticsFiles:
    """The video files of one split on the disk, by name.

    Args:
        root: of the data set.
        splits: names that the split's folder may have; the first of these, `videos` and `root` that holds any video
            is taken.
    """

    def __init__(self, root: Path, splits: list[str]) -> None:
        self.by_name: dict[str, str] = {}
        self.folder: Path | None = None
        for folder in [root / name for name in splits if name] + [root / "videos", root]:
            if folder.is_dir() and (index := _index(folder)):
                self.by_name, self.folder = index, folder
                break
        folders = [root / name for name in REPLACEMENT_FOLDERS if (root / name).is_dir()]
        self.replacement_folder = folders[0] if folders else None
        # By id, as CVDF's own script finds them.
        good = _index(folders[0]) if folders else {}
        self._replacements = {name[:_ID_CHARACTERS]: path for name, path in good.items()}
        self.replaced = 0

    def find(self, row: KineticsRow) -> str | None:
        """The path of a row's video, of its good copy where there is one; None where there is none."""
        path = self.by_name.get(row.name) or self.by_name.get(row.youtube_id)
        if path is not None and (better := self._replacements.get(row.youtube_id)) is not None:
            self.replaced += 1
            return better
        return path


def _name_of(row: dict[str, str], where: str) -> str:
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: expected label,youtube_id,time_start,time_end,split, got {row}") from error


def _label_of(row: dict[str, str], where: str, classes: ClassIndex, labelled: bool) -> int:
    name = (row.get("label") or "").strip()
    if not name:
        if labelled:
            raise UserError(f"{where}: no label; a csv without labels is for prediction")
        return -1
    label = classes.find(name)
    if label is None:
        raise UserError(f"{where}: {name!r} is no class of this data set{classes.suggestion(name)}")
    return label


def _index(folder: Path) -> dict[str, str]:
    """Videos by file name without suffix."""
    return {entry.name.rpartition(".")[0]: entry.path for entry in _videos(folder)}


def _videos(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Video files in a folder and its folders: scandir, since a Path for each of 240,000 files takes seconds."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:  # noqa: PTH122
                yield entry
            elif entry.is_dir():
                with os.scandir(entry.path) as inner:
                    yield from (e for e in inner if os.path.splitext(e.name)[1].lower() in VIDEO_SUFFIXES)  # noqa: PTH122
