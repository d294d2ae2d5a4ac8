"""The official csv of Kinetics-400/600/700 beside the videos, in either layout of the field.

csv: label,youtube_id,time_start,time_end,split[,is_cc]; the test csv may lack the label.
Files: {id}_{start:06d}_{end:06d}.mp4 (the CVDF archives, flat or in class folders) or {class}/{id}.mp4.
Ids have 11 characters and may begin with - or _. Many listed videos are gone from YouTube: what is missing is
counted and said, never replaced.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from octvideo.data.class_names import ClassIndex
from octvideo.data.manifest import VideoRecord
from octvideo.errors import UserError
from octvideo.video import VIDEO_SUFFIXES

log = logging.getLogger("octvideo.data")


def is_kinetics_csv(file: Path) -> bool:
    """Whether a file starts with the header of the official csv."""
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        return "youtube_id" in next(csv.reader([text.readline()]), [])


def read_kinetics_csv(file: Path, *, root: Path, classes: ClassIndex, labelled: bool = True) -> list[VideoRecord]:
    """The videos of an official csv that are on the disk.

    Args:
        file: the csv.
        root: with the videos under {split}/, {name of the csv}/, videos/ or right there.
        classes: of the data set.
        labelled: every row must have a label.

    Raises:
        UserError: with file and line; or none of its videos is there.
    """
    found: dict[str, str] | None = None
    records: list[VideoRecord] = []
    missing: list[str] = []
    with file.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.DictReader(text)
        for row in rows:
            line = f"{file}:{rows.line_num}"
            name, label = _name_of(row, line), _label_of(row, line, classes, labelled)
            if found is None:
                found = _index(root, [row.get("split") or "", file.stem])
            path = found.get(name) or found.get(row["youtube_id"])
            if path is None:
                missing.append(name)
            else:
                records.append(VideoRecord(path, label))
    total = len(records) + len(missing)
    if total and not records:
        raise UserError(
            f"none of the {total} videos of {file} is under {root}: looked for files such as {missing[0]}.mp4 "
            f"in {root}, {root / file.stem} and class folders in them. data/README.md tells how to get them"
        )
    if missing:
        log.warning(
            "%s lists %d videos, %d of them are not there (the first: %s)", file, total, len(missing), missing[0]
        )
    return records


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


def _index(root: Path, names: list[str]) -> dict[str, str]:
    """Videos by file name without suffix, from the first of the usual folders that is there."""
    for folder in [root / name for name in names if name] + [root / "videos", root]:
        if folder.is_dir():
            index = {entry.name.rpartition(".")[0]: entry.path for entry in _videos(folder)}
            if index:
                return index
    return {}


def _videos(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Video files in a folder and its folders: scandir, since a Path for each of 240,000 files takes seconds."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:  # noqa: PTH122
                yield entry
            elif entry.is_dir():
                with os.scandir(entry.path) as inner:
                    yield from (e for e in inner if os.path.splitext(e.name)[1].lower() in VIDEO_SUFFIXES)  # noqa: PTH122
