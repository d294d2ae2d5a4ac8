"""Which videos, and which class each has: lists in the formats of the field, and folders of classes.

Formats of lists, told apart line by line and split from the right, since paths hold spaces::

    dir/a clip.mp4 12          mmaction2, PySlowFast: ids (any run of spaces, tabs, commas, semicolons)
    dir/a clip.mp4,wave        class name, after a comma, semicolon or tab, or after the suffix of a video
    "dir/a, b.mp4","wave"      quotes of csv
    dir/a clip.mp4             no label, for prediction
    path,label                 as first line: columns by name, in any order, among any others
    label,youtube_id,...       the official csv of Kinetics, see kinetics.py
    folder 120 12              extracted frames, where the names of images are given, see frame_lists.py

A number is an id. Where classes are called by numbers it is a name after a comma, semicolon or tab; after a space the
whole list decides, and is refused where both would do. Empty lines and lines that start with # are passed over.
Errors name file and line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from octvideo.class_names import ClassIndex, is_number
from octvideo.data.frame_lists import split_frames
from octvideo.data.kinetics import is_kinetics_csv, read_kinetics_csv
from octvideo.data.records import FrameRange, VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_video, read_text, text_lines, walk_videos
from octvideo.video import FrameNames

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})
_SUFFIXES = "|".join(map(re.escape, VIDEO_SUFFIXES))
_AFTER_VIDEO = re.compile(rf"(.*(?:{_SUFFIXES}))([\s,;]+)(.*)", re.IGNORECASE)  # path, what is between, label
_NUMBERED = re.compile(r"(.*[^\s,;])([\s,;]+)(-?\d+)")
_NAMED = re.compile(r"(.*\S)(\s*[\t,;]\s*)([^\t,;]*)")
# Columns that lists of the field call so, the likeliest first.
_PATHS = ("path", "file_path", "filepath", "video_path", "file", "filename", "file_name", "video", "video_name")
_LABELS = ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id")
_CHECKED = 64  # files looked for before a run starts: a wrong root misses all of them


def read_records(
    source: Path,
    *,
    root: Path,
    classes: ClassIndex,
    labelled: bool = True,
    frames: FrameNames | None = None,
    fps: float | None = None,
) -> VideoList:
    """The videos of a list or a folder of classes, whatever its layout.

    Args:
        source: list file, or folder with one folder per class (or of videos, where `labelled` is off).
        root: what relative paths in a list start from.
        classes: of the data set.
        labelled: every video must have a label.
        frames: names of images: lists are of folders of extracted frames. None reads videos.
        fps: of extracted frames.

    Raises:
        UserError: with file and line; or there is no video.
    """
    if frames is not None and (source.is_dir() or not source.is_file() or is_kinetics_csv(source)):
        raise UserError(f"{source}: with data.frame_names expected a list of lines 'folder num_frames label'")
    if source.is_dir():
        records = VideoList(_read_folder(source, classes, labelled))
    elif source.is_file() and is_kinetics_csv(source):
        records = read_kinetics_csv(source, root=root, classes=classes, labelled=labelled)
    else:
        records = VideoList(_read_list(source, root, classes, labelled, (frames, fps)))
    if not records:
        raise UserError(f"{source} lists no video")
    return records


def check_files(records: Sequence[VideoRecord], source: str | Path, advice: str = "") -> None:
    """Looks for some of the files, evenly spread, before hours of work start.

    Raises:
        UserError: none of them is there; single missing ones are left to reading.
    """
    some = records[:: max(len(records) // _CHECKED, 1)]
    is_there = Path.is_file if some[0].frames is None else Path.is_dir
    missing = [record.path for record in some if not is_there(Path(record.path))]
    if len(missing) == len(some):
        raise UserError(
            f"none of the videos of {source} is there: looked for {len(missing)} of its {len(records)}, the first "
            f"{Path(missing[0]).absolute()}. Paths in a list start from data.root. {advice}".rstrip()
        )


def _read_folder(folder: Path, classes: ClassIndex, labelled: bool) -> Iterator[VideoRecord]:
    for path in walk_videos(folder):
        name, inside, _ = path.partition(os.sep)
        label = classes.find(name) if inside else None
        if label is None and labelled:
            if not inside:
                raise UserError(f"{folder / path} lies in no class folder: expected {folder}/<class>/{path}")
            classes.need(name, str(folder / name))
        yield VideoRecord(os.path.join(folder, path), -1 if label is None else label)  # noqa: PTH118 (a Path is slow)


_Images = tuple[FrameNames | None, float | None]  # names of images, and their rate


def _read_list(file: Path, root: Path, classes: ClassIndex, labelled: bool, images: _Images) -> Iterator[VideoRecord]:
    if is_video(file.name):
        raise UserError(f"{file} is a video: expected a list of videos, or a folder of them")
    bare = ((where, label) for where, _, _, label, is_name, _ in _lines(file, root, classes, images) if not is_name)
    are_names = classes.numbers_are_names(bare)
    for where, text, path, label, is_name, frames in _lines(file, root, classes, images):
        number = classes.id_of(label, where, is_name=is_name or are_names) if label else -1
        if number < 0 and labelled:
            expected = "path label" if frames is None else "folder num_frames label"
            raise UserError(f"{where}: got {text!r}, expected '{expected}'")
        yield VideoRecord(str(root / path), number, frames=frames)


def _lines(
    file: Path, root: Path, classes: ClassIndex, images: _Images
) -> Iterator[tuple[str, str, str, str, bool, FrameRange | None]]:
    """For each line that names a video: where it is, its text, path, label or "", whether that may be a name, and its
    frames, if they are images.
    """
    frames = None
    names, fps = images
    columns: tuple[str, list[str], int, int] | None = None
    is_first = True
    for number, line in enumerate(text_lines(read_text(file, names=True)), 1):
        text, where = line.strip(), f"{file}:{number}"
        if not text or text.startswith("#"):
            continue
        if names is not None:
            path, frames, between, label = split_frames(text, where, root=root, names=names, fps=fps)
            yield where, text, path, label, not is_number(label) or not between.isspace() or "\t" in between, frames
            continue
        if is_first:
            is_first, columns = False, _columns(text)
            if columns is not None:
                continue
        path, between, label = (
            _split(text, where, root, classes) if columns is None else _cells_of(text, where, *columns)
        )
        yield where, text, path, label, not is_number(label) or not between.isspace() or "\t" in between, frames


def _columns(text: str) -> tuple[str, list[str], int, int] | None:
    """Delimiter, all columns, and those of path and label, where a line is the first of a csv."""
    delimiter = next((mark for mark in "\t;," if mark in text), " ")
    names = [name.lower() for name in _csv(text, delimiter)]
    found = [next((names.index(name) for name in known if name in names), None) for known in (_PATHS, _LABELS)]
    return None if None in found else (delimiter, names, *found)  # type: ignore[return-value]


def _cells_of(text: str, where: str, delimiter: str, columns: list[str], path: int, label: int) -> tuple[str, str, str]:
    cells = _csv(text, delimiter)
    if len(cells) != len(columns):
        raise UserError(
            f"{where}: got {len(cells)} columns, expected those of the first line, {delimiter.join(columns)}; "
            f"a path that holds {delimiter!r} needs quotes"
        )
    return cells[path], " " if columns[label].endswith("_id") else delimiter, cells[label]


def _csv(text: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:  # quotes that are none
        return []
    return [cell.strip() for cell in cells]


def _split(text: str, where: str, root: Path, classes: ClassIndex) -> tuple[str, str, str]:
    """Path, what stands between, and label."""
    for delimiter in ",;\t " if '"' in (text[0], text[-1]) else "":
        cells = _csv(text, delimiter)
        if len(cells) == 2 or (len(cells) == 1 and cells[0] != text):
            return cells[0], delimiter, "".join(cells[1:])
    match = _AFTER_VIDEO.fullmatch(text)
    if match is None or is_video(match[3]):
        match = _NUMBERED.fullmatch(text)
    if match is None:  # a path without a suffix, whose end the names of classes tell
        match, (path, _, word) = _NAMED.fullmatch(text), text.rpartition(" ")
        if path and classes.find(word) is not None and (match is None or classes.find(match[3]) is None):
            return path.strip(), " ", word
        return (text, "", "") if match is None or is_video(match[3]) else (match[1], match[2], match[3])
    path, between, label = match.groups()
    # TSN's lists, `folder num_frames label`, are of extracted frames; others give start and end, or several labels.
    head = re.match(r"^(.*\S)[\s,;]+-?\d+$", path)
    if head and (root / head[1]).is_dir():
        raise UserError(
            f"{where}: {head[1]} is a folder of frames: say how its images are called, such as "
            "data.frame_names 'img_{:05d}.jpg'; or give video files, 'path label'"
        )
    if re.fullmatch(r"(-?\d+[\s,;]+)+-?\d+", label):
        raise UserError(f"{where}: got several numbers after {path}, expected 'path label'")
    if re.search(r"[,;\t]", label) and classes.find(label) is None:
        raise UserError(f"{where}: got {label!r} after {path}, expected one label: 'path,label'")
    return path, between, label
